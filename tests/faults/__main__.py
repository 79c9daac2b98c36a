"""``python -m tests.faults``: many faults in small sweeps, and one table of what they show.

Folders of runs that went wrong are kept. The seed that is printed makes the same faults again. The
table is also written to ``results/faults.txt``.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from .calls import Calls, Found
from .kills import GRACEFUL, SIGNALS, Tally, Trials
from .processes import ROOT
from .scenarios import EVERY, SHORT_EVERY

SHARES = {"basic": 0.6, "joblib": 0.3, "submitit_local": 0.1}
"""The share of each launcher in the kills."""
FRESH_EVERY = {"basic": 8, "joblib": 8, "submitit_local": 4}
"""One trial in so many starts fresh processes. Those of submitit's jobs always are."""
WIDTH = 52


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--number", type=int, default=200, help="kills, failing calls, power losses"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at the same time")
    parser.add_argument("--only", choices=["kills", "calls", "power"], help="one of the parts")
    parser.add_argument("--launcher", choices=list(SHARES), help="one launcher of the kills")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="study-faults-"))
    print(f"seed {given.seed}, in {place}", flush=True)
    wrong: list[str] = []
    lines = [f"make faults N={given.number} SEED={given.seed}, commit {_commit()}"]
    if given.only in (None, "kills"):
        tallies = _kills(place, given)
        lines += _table(tallies)
        wrong += [line for tally in tallies.values() for line in tally.wrong]
    calls = Calls(place)
    for part, run in (("calls", calls.fail_some), ("power", calls.lose_power)):
        if given.only in (None, part):
            began = time.monotonic()
            found = run(given.number, given.seed, given.jobs)
            lines += _lines_of(part, found, time.monotonic() - began)
            wrong += found.wrong
            print("\n".join(f"WRONG: {line}" for line in found.wrong), flush=True)
    lines.append(_row("wrong in all", [len(wrong)]))
    text = "\n".join(lines)
    print(text)
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "faults.txt").write_text(text + "\n")
    return bool(wrong)


def _kills(place: Path, given: argparse.Namespace) -> dict[str, Tally]:
    """The kills of each launcher that is installed."""
    trials = Trials(place, given.seed, say=lambda line: print(f"WRONG: {line}", flush=True))
    tallies: dict[str, Tally] = {}
    for turn, (launcher, share) in enumerate(SHARES.items()):
        if given.launcher not in (None, launcher):
            continue
        if launcher == "submitit_local" and not find_spec("hydra_plugins.hydra_submitit_launcher"):
            print("submitit_local is not installed: pip install '.[submitit]'", flush=True)
            continue
        kills = given.number if given.launcher else max(1, round(share * given.number))
        first = 10_000 * turn  # other trials than under the launcher before
        tally = trials.run(kills, launcher, first, FRESH_EVERY[launcher], given.jobs)
        tallies[launcher] = tally
        print("\n".join(_table({launcher: tally})), flush=True)
    return tallies


def _table(tallies: dict[str, Tally]) -> list[str]:
    """What the kills have shown, with a column for each launcher."""
    found = tallies.values()
    lines = [_row("launcher", list(tallies)), _row("sweeps", [t.trials for t in found])]
    for signum in SIGNALS:
        counts = [t.kills[signum.name, launcher] for launcher, t in tallies.items()]
        lines.append(_row(f"{signum.name} sent", counts))
    lines.append(_row("at another moment than a file call or a row", [t.timed for t in found]))
    for code, name in GRACEFUL.items():
        counts = [t.exits[f"{code} {name}"] for t in found]
        lines.append(_row(f"exit code {code}, with the line that continues", counts))
    lines += [
        _row("sweeps with other tables than an undisturbed one", [t.differing for t in found]),
        _row("cells trained twice", [t.twice for t in found]),
        _row(
            f"most steps lost per kill, checkpoints every {EVERY}",
            [max(t.lost, default=0) for t in found],
        ),
        _row(
            "  and steps trained while a checkpoint was written",
            [max(t.in_writing, default=0) for t in found],
        ),
        _row("most steps lost per stop", [max(t.after_stop, default=0) for t in found]),
        _row("tracebacks, wrong exit codes, and all else", [len(t.wrong) for t in found]),
        _row("seconds", [round(t.seconds) for t in found]),
    ]
    return lines


def _lines_of(part: str, found: Found, seconds: float) -> list[str]:
    runs = found.runs.total()
    if part == "calls":
        codes = [
            sum(count for run, count in found.runs.items() if run.endswith(f" {code}"))
            for code in (0, 2)
        ]
        return [
            _row("file calls that fail (ENOSPC, EIO, EROFS, EACCES)", [runs]),
            _row("  exit code 0: the call was not needed", codes[:1]),
            _row("  exit code 2, with one line", codes[1:]),
            _row("  wrong tables, tracebacks, and all else", [len(found.wrong)]),
            _row("  seconds", [round(seconds)]),
        ]
    return [
        _row("losses of power", [runs]),
        _row(f"  most steps lost, checkpoints every {SHORT_EVERY}", [found.most_lost]),
        _row("  wrong tables, lost cells, and all else", [len(found.wrong)]),
        _row("  seconds", [round(seconds)]),
    ]


def _row(name: str, values: list[object] | list[int] | list[str]) -> str:
    return f"{name:<{WIDTH}}" + "".join(f"{value!s:>15}" for value in values)


def _commit() -> str:
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
