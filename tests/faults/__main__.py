"""``python -m tests.faults``: the long version of the fault tests, with a table at the end."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .kills import Trials


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--launcher", default="basic")
    parser.add_argument("--fresh-every", type=int, default=0)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="study-faults-"))
    trials = Trials(place, given.seed)
    began = time.monotonic()
    tally = trials.run(given.kills, given.launcher, given.first, given.fresh_every, given.jobs)
    print(tally, time.monotonic() - began, place)
    return bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
