"""``python -m tests.faults``: many faults in small sweeps, and one table of what they show.

Folders of runs that went wrong are kept. The seed that is printed makes the same faults again.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import torch

from study.store.provenance import provenance
from study.training.devices import describe_device

from .calls import Calls, Found
from .kills import SIGNALS, Tally, Trials
from .scenarios import EVERY, LAUNCHERS, SHORT_EVERY

SHARES = {"basic": 0.6, "joblib": 0.3, "submitit_local": 0.1}
"""The share of each launcher in the kills."""
FRESH_EVERY = {"basic": 8, "joblib": 8, "submitit_local": 4}
"""One trial in so many starts fresh processes. Those of submitit's jobs always are."""
_SAID: list[str] = []
"""The lines of the table."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--number", type=int, default=200, help="kills, failing calls, power losses"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at the same time")
    parser.add_argument("--only", choices=["kills", "calls", "power"], help="one of the parts")
    parser.add_argument("--launcher", choices=list(LAUNCHERS), help="one launcher of the kills")
    parser.add_argument(
        "--to", type=Path, default=Path("results/faults.txt"), help="also write the table here"
    )
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="study-faults-"))
    print(f"seed {given.seed}, in {place}", flush=True)
    commit = (provenance()["git"] or {}).get("commit", "unknown")
    _say(f"{date.today()}, {_machine()}, commit {commit[:7]}, seed {given.seed}")
    wrong: list[str] = []
    if given.only in (None, "kills"):
        wrong += _kills(place, given.number, given.seed, given.jobs, given.launcher)
    calls = Calls(place)
    for part, run in (("calls", calls.fail_some), ("power", calls.lose_power)):
        if given.only in (None, part):
            began = time.monotonic()
            found = run(given.number, given.seed, given.jobs)
            _show_found(part, found, time.monotonic() - began)
            wrong += found.wrong
    for line in wrong:
        print(f"WRONG: {line}")
    _say(f"\n{len(wrong)} faults found")
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text("\n".join(_SAID) + "\n")
    return bool(wrong)


def _kills(place: Path, number: int, seed: int, jobs: int, launcher: str | None) -> list[str]:
    trials = Trials(place, seed, say=lambda line: print(f"WRONG: {line}", flush=True))
    wrong, first = [], 0
    for name, share in SHARES.items():
        if launcher not in (None, name):
            continue
        if name == "submitit_local" and not find_spec("hydra_plugins.hydra_submitit_launcher"):
            print("submitit_local: not installed (pip install 'study[submitit]')")
            continue
        began, kills = time.monotonic(), max(1, round(share * number)) if not launcher else number
        tally = trials.run(kills, name, first, FRESH_EVERY[name], jobs)
        first += 10_000  # other trials than under the launcher before
        _show_tally(name, tally, time.monotonic() - began)
        wrong += tally.wrong
    return wrong


def _show_tally(launcher: str, tally: Tally, seconds: float) -> None:
    signals = {signum.name: tally.kills[signum.name, launcher] for signum in SIGNALS}
    again = [a + b for a, b in zip(tally.lost, tally.in_writing, strict=True)]
    _show(
        f"kills under {launcher}",
        {
            "kills": f"{tally.killed} in {tally.trials} sweeps: {_counts(Counter(signals))}",
            "at": _counts(tally.stages),
            "sweeps that differ from the undisturbed one": tally.differing,
            "cells trained twice": tally.twice,
            f"most steps lost per kill (a checkpoint every {EVERY})": max(tally.lost, default=0),
            "with steps during an unfinished writing": max(again, default=0),
            "most steps lost per stop that has time": max(tally.after_stop, default=0),
            "files of ended cells left over (study check)": tally.left_over,
            "exit codes": _counts(tally.exits),
            "seconds": round(seconds),
        },
    )


def _show_found(part: str, found: Found, seconds: float) -> None:
    title = {"calls": "file calls that fail", "power": "losses of power"}[part]
    rows = {"runs": _counts(found.runs), "wrong": len(found.wrong), "seconds": round(seconds)}
    if part == "power":
        rows[f"most steps lost (a checkpoint every {SHORT_EVERY})"] = found.most_lost
    _show(title, rows)


def _show(title: str, rows: dict[str, object]) -> None:
    _say(f"\n{title}")
    for name, value in rows.items():
        _say(f"  {name:<50} {value}")


def _say(line: str) -> None:
    """Print a line of the table, which is also written to a file."""
    print(line, flush=True)
    _SAID.append(line)


def _machine() -> str:
    """The processor, and how many of its cores this process may use."""
    return f"{describe_device(torch.device('cpu'))['device_name']}, {os.cpu_count()} cores"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()) if count)


if __name__ == "__main__":
    sys.exit(main())
