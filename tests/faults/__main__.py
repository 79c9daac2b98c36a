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

PARTS = {
    "kills": "runs with a kill planned",
    "calls": "file calls that fail",
    "power": "power losses",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--number", type=int, default=200, help="faults of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at the same time")
    parser.add_argument("--only", choices=list(PARTS), help="one of the parts")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="study-faults-"))
    print(f"seed {given.seed}, in {place}", flush=True)
    lines = [f"make faults N={given.number} SEED={given.seed}, commit {_commit()}"]
    wrong: list[str] = []
    for part in PARTS if given.only is None else [given.only]:
        began = time.monotonic()
        found = _run(part, place, given)
        lines += [
            f"{PARTS[part]:28}{found.counts.total():6} in {time.monotonic() - began:.0f} s",
            *(f"  {name:26}{count:6}" for name, count in sorted(found.counts.items())),
            f"  most steps lost at once   {found.lost:6}",
            f"  wrong in anything         {len(found.wrong):6}",
        ]
        print("\n".join([*lines[-3 - len(found.counts) :], *found.wrong]), flush=True)
        wrong += found.wrong
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "faults.txt").write_text("\n".join(lines) + "\n")
    return bool(wrong)


def _run(part: str, place: Path, given: argparse.Namespace) -> Found:
    if part == "kills":
        sweeps = [Sweep(name, place) for name in SWEEPS]
        for sweep in sweeps:
            sweep.points  # noqa: B018  trained once, before threads share it
        total, seed = Found(), given.seed
        while total.counts.total() < given.number:
            cases = [(sweep, seed + turn) for turn, sweep in enumerate(sweeps)]
            total.add(run_all(Sweep.kill, cases, given.jobs))
            seed += len(sweeps)
        return total
    short = Sweep("short", place / part)
    if part == "calls":
        return run_all(short.fail, failing_cases(short, given.number, given.seed), given.jobs)
    return run_all(short.lose_power, power_cases(short, given.number, given.seed), given.jobs)


def _commit() -> str:
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
