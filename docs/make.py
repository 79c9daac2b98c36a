"""``make figures``: draw every committed picture, and write every committed number, again.

Both come from the tables in ``results/reference``. The same tables give the same bytes, so that
git reports a change only where a number or a picture changed. The picture of the dashboard is a
screenshot (:mod:`docs.screenshot`).
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.inference_costs import infer_cost
from benchmarks.summary import speed
from docs import bench_blocks, findings, study_blocks
from docs.blocks import PLOTS, RESULTS, ROOT, Block, Say, rewrite, study_tables, table
from docs.pictures import slim
from docs.studies import STUDIES
from study.figures import FIGURES, draw_all, save
from study.report import as_markdown
from study.report.page import report_of
from study.store import write_output
from study.store.files import remove
from study.store.records import ARCHIVE

REPORT = "report.md"
PROCESSES = min(4, os.cpu_count() or 1)
"""That draw studies at a time. Each takes about 1 GB."""
BLOCKS: dict[str, Block] = {
    **study_blocks.BLOCKS,
    **bench_blocks.BLOCKS,
    **findings.BLOCKS,
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


def draw_study(name: str) -> list[str]:
    """Draw the pictures of a study and write its report.

    Returns a line on what was done, and one for each figure that lacks its data.
    """
    tables, folder = study_tables(name), PLOTS / name
    said = [f"drew {name}"]
    asked = [figure for figure in FIGURES if figure in STUDIES[name].figures]
    drawn = []
    for figure, page in draw_all(tables, said.append, asked):
        [path] = save(page, folder, figure, ["png"])
        slim(path)
        drawn.append(figure)
    for path in folder.glob("*.png"):
        if path.stem not in drawn:
            remove(path)
    blocks = report_of(RESULTS / name, tables, drawn, folder, folder)
    write_output(folder / REPORT, as_markdown(blocks))
    return said


def draw_pictures(say: Say) -> None:
    """Draw the pictures of the studies and of the benchmarks again."""
    names = sorted(archive.parent.name for archive in RESULTS.glob(f"*/{ARCHIVE}"))
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        for lines in pool.map(draw_study, names):
            for line in lines:
                say(line)
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
