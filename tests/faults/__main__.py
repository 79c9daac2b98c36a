"""``python -m tests.faults``: many faults in small sweeps, and one table of what they show.

Folders of runs that went wrong are kept. The seed that is printed makes the same faults again. The
table is also written to ``results/faults.txt``.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.forked import ROOT

from .faults import Found, Sweep, failing_cases, power_cases, run_all
from .sweeps import SWEEPS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--number", type=int, default=200, help="faults of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="study-faults-"))
    print(f"seed {given.seed}, in {place}", flush=True)
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    lines = [f"make faults N={given.number} SEED={given.seed}, commit {commit or 'unknown'}"]
    wrong: list[str] = []
    for title, act in PARTS.items():
        began = time.monotonic()
        found = act(place, given.number, given.seed)
        part = [
            f"{title:28}{found.counts.total():6} in {time.monotonic() - began:.0f} s",
            *(f"  {name:26}{count:6}" for name, count in sorted(found.counts.items())),
            f"  wrong in anything         {len(found.wrong):6}",
        ]
        print("\n".join([*part, *found.wrong]), flush=True)
        lines += part
        wrong += found.wrong
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "faults.txt").write_text("\n".join(lines) + "\n")
    return bool(wrong)


def _kills(place: Path, number: int, seed: int) -> Found:
    sweeps, total = [Sweep(name, place) for name in SWEEPS], Found()
    for sweep in sweeps:
        sweep.calls  # noqa: B018  trained once, before threads share it
    while total.counts.total() < number:
        total.add(run_all(Sweep.kill, [(sweep, seed) for sweep in sweeps]))
        seed += 1
    return total


def _calls(place: Path, number: int, seed: int) -> Found:
    short = Sweep("short", place / "calls")
    return run_all(short.fail, failing_cases(short, number, seed))


def _power(place: Path, number: int, seed: int) -> Found:
    short = Sweep("short", place / "power")
    return run_all(short.lose_power, power_cases(short, number, seed))


PARTS = {"runs with a kill planned": _kills, "file calls that fail": _calls, "power losses": _power}


if __name__ == "__main__":
    sys.exit(main())
