"""``python -m docs.archive NAME ...``: commit the studies ``results/NAME``.

Writes ``results/reference/NAME`` (:mod:`study.store.archiving`). ``make figures`` makes the
pictures and the numbers from it.
"""

import math
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from docs.blocks import PLOTS, RESULTS, ROOT
from study.errors import StudyError
from study.store.archiving import Thin, write_archive
from study.store.integrity import check_study

MOST_MEGABYTES = 15
"""Of all archives together."""


def evaluated(name: str, rows: pa.Table) -> pa.Table:
    """Of ``metrics``, the rows with a held-out loss and the last one; all rows of other tables."""
    if name != "metrics" or not len(rows):
        return rows
    is_last = pc.equal(rows["step"], pc.max(rows["step"]))
    return rows.filter(pc.or_(pc.is_finite(pc.fill_null(rows["eval_loss"], math.nan)), is_last))


THINNED: dict[str, Thin] = {"learning_rate_rho_tiny": evaluated}
"""By study, what the archive keeps of each table, if not all rows. Its 1500 cells of 128 steps are
compared by their held-out losses."""


def archive(name: str) -> None:
    """Write the archive of one study, check it, and print its size and that of all archives."""
    to = RESULTS.relative_to(ROOT) / name
    plots = PLOTS.relative_to(ROOT).as_posix()
    thin = THINNED.get(name, lambda _, rows: rows)
    written = write_archive(Path("results") / name, to, plots, thin)
    for cell in written.left_out:
        print(f"left out, because it has not ended: {cell}", file=sys.stderr)
    print(f"{written.path}: {written.cells} cells, {written.megabytes:.2f} MB")
    for problem in check_study(to):
        raise StudyError(f"{problem.path}: {problem.reason}")
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
