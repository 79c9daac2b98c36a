"""``python -m docs.archive NAME ...``: commit the studies ``results/NAME``.

Writes ``results/reference/NAME`` (:mod:`study.store.archiving`). ``make figures`` makes the
pictures and the numbers from it.
"""

import os
import sys
from pathlib import Path

from docs.blocks import PLOTS, RESULTS, ROOT
from study.errors import StudyError
from study.store.archiving import write_archive

MOST_MEGABYTES = 15
"""Of all archives together."""


def archive(name: str) -> None:
    """Write the archive of one study, and print its size and that of all archives."""
    to = RESULTS.relative_to(ROOT) / name
    written = write_archive(Path("results") / name, to, PLOTS.relative_to(ROOT).as_posix())
    for cell in written.left_out:
        print(f"left out, because it has not ended: {cell}", file=sys.stderr)
    print(f"{written.path}: {written.cells} cells, {written.megabytes:.2f} MB")
    total = sum(path.stat().st_size for path in RESULTS.glob("*/cells.tar.zst")) / 1e6
    print(f"all archives: {total:.1f} of {MOST_MEGABYTES} MB")
    if total > MOST_MEGABYTES:
        raise StudyError(f"all archives have {total:.1f} MB: leave a study out, or thin it")


def main() -> None:
    """Archive the studies named on the command line."""
    os.chdir(ROOT)  # records name the folder by its path from here
    for name in sys.argv[1:]:
        archive(name)


if __name__ == "__main__":
    main()
