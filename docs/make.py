"""``make figures``: draw every committed picture, and write every committed number, again.

Both come from the tables in ``results/reference``. The same tables give the same bytes, so that
git reports a change only where a number or a picture changed. The picture of the dashboard is a
screenshot (:mod:`docs.screenshot`).
"""

import sys
from pathlib import Path

from benchmarks.inference.figure import infer_cost
from benchmarks.training.figure import speed
from docs import bench_blocks, reliability_blocks, study_blocks
from docs.blocks import (
    PLOTS,
    QUICK,
    RESULTS,
    ROOT,
    Block,
    NoTables,
    Say,
    rewrite,
    study_tables,
    table,
)
from study.figures import FIGURES, save
from study.report import draw_figures

PICTURES: dict[str, tuple[str, ...]] = {study_blocks.P_STAR: ("conditions",)}
"""By study, beside the quick one: the figures that documents show."""
BLOCKS: dict[str, Block] = {
    **study_blocks.BLOCKS,
    **bench_blocks.BLOCKS,
    **reliability_blocks.BLOCKS,
}


def documents() -> list[Path]:
    """Every document that may show a number."""
    found = [*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")]
    return sorted(path for path in found if path.exists())


def write_documents(say: Say) -> None:
    """Write the numbers of every document again."""
    for path in documents():
        old = path.read_text()
        new = rewrite(old, BLOCKS, say)
        if new != old:
            path.write_text(new)
            say(f"new numbers in {path.relative_to(ROOT)}")


def draw_pictures(say: Say) -> None:
    """Draw the pictures of the studies and of the benchmarks again."""
    for _ in draw_figures(study_tables(), PLOTS / QUICK):
        pass
    for study, figures in PICTURES.items():
        try:
            tables = study_tables(study)
        except NoTables as missing:
            say(f"the pictures of {study} stay as they are: {missing}")
            continue
        for name in figures:
            save(FIGURES[name](tables), PLOTS / study, name, tables.data_hash)
    save(speed(table("bench/sweep"), table("bench/large-steps")), PLOTS, "speed")
    save(infer_cost(table("infer_cost/infer_cost")), PLOTS, "infer_cost")
    say(f"drew {PLOTS.relative_to(ROOT)} from {RESULTS.relative_to(ROOT)}")


def main() -> None:
    """Draw and write."""

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    draw_pictures(say)
    write_documents(say)


if __name__ == "__main__":
    main()
