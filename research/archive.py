"""``python -m research.archive NAME ...``: commit the studies ``results/NAME``.

Writes ``results/reference/NAME`` (:mod:`study.store.archive`). ``make figures`` makes the
pictures and the numbers from it.
"""

import math
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from research.blocks import PLOTS, RESULTS, ROOT, STUDIES
from study.errors import StudyError
from study.store import cell_folders
from study.store.archive import Thin, check_study, write_archive
from study.vocabulary.quantities import FIRST_READ, MOMENTS, QUANTITIES


def evaluated(name: str, rows: pa.Table) -> pa.Table:
    """Of ``metrics``, the rows with a held-out loss or a loss after the step, and the last one; all
    rows of other tables."""
    if name != "metrics" or not len(rows):
        return rows
    kept = pc.equal(rows["step"], pc.max(rows["step"]))
    for metric in ("eval_loss", "loss_after"):
        kept = pc.or_(kept, pc.is_finite(pc.fill_null(rows[metric], math.nan)))
    return rows.filter(kept)


def without(name: str, rows: pa.Table, *columns: str) -> pa.Table:
    """``metrics`` without these columns, as nulls. Other tables stay as they are."""
    if name == "metrics":
        for column in columns:
            index = rows.schema.get_field_index(column)
            field = rows.schema.field(index)
            rows = rows.set_column(index, field, pa.nulls(len(rows), field.type))
    return rows


READ = {
    *((quantity.site, quantity.stat) for quantity in QUANTITIES),
    *FIRST_READ,
    *(("adapter_out", "mean_abs"), ("adapter_out", "m4")),  # the figure of activation moments
    *(("A_grad", "rms"), ("B_grad", "rms")),  # compared with the eps of Adam
    ("adapter_grad", "mean_norm"),
    *(("adapter_out", "swallowed"), ("layer_out", "rms")),  # of reports on bf16
}
"""The moments that figures, reports, expectations and the caveats of the analysis read."""


def read_moments(name: str, rows: pa.Table) -> pa.Table:
    """Of ``probes``, the moments in :data:`READ`; others are null. All of other tables.

    Exponents of what is kept are those of the study. Fewer exponents are tested, so a verdict that
    is corrected for their number may be given sooner.
    """
    if name != "probes":
        return rows
    for stat in (stat for stat in MOMENTS if stat != "nonfinite"):
        sites = [site for site, known in READ if known == stat]
        is_read = pc.is_in(rows["site"].cast(pa.string()), pa.array(sites, pa.string()))
        column = pc.if_else(is_read, rows[stat], pa.scalar(None, rows[stat].type))
        rows = rows.set_column(rows.schema.get_field_index(stat), rows.schema.field(stat), column)
    return rows


THIN: dict[str, Thin] = {
    "evaluated": lambda name, rows: read_moments(name, evaluated(name, rows)),
    "losses": lambda name, rows: without(name, rows, "seconds", "grad_norm"),
    "read": lambda name, rows: read_moments(name, without(name, rows, "seconds")),
    "all": lambda _, rows: rows,
}
"""What the archive keeps of each table, by the key `keeps` of studies.yaml. The times of steps and
the norms of their gradients take more room than losses."""


def archive(name: str) -> None:
    """Write the archive of one study, and check it. A test limits the size of all archives."""
    to = RESULTS.relative_to(ROOT) / name
    plots = PLOTS.relative_to(ROOT).as_posix()
    thin = THIN[STUDIES.get(name, {}).get("keeps", "all")]
    for cell in write_archive(Path("results") / name, to, plots, thin):
        print(f"left out, because it has not ended: {cell}", file=sys.stderr)
    print(f"{to}: {len(cell_folders(to))} cells")
    for path, reason in check_study(to):
        raise StudyError(f"{path}: {reason}")


if __name__ == "__main__":
    os.chdir(ROOT)  # records name the folder by its path from here
    for name in sys.argv[1:]:
        archive(name)
