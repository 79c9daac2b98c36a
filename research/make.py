"""``make figures``: draw every committed picture, and write every committed number, again.

Both come from the tables in ``results/reference``. The same tables give the same bytes, so that
git reports a change only where a number or a picture changed. A number is computed again only if
its text, its tables or its code changed (:mod:`research.record`). The picture of the dashboard is a
screenshot (``make dashboard-picture``).
"""

import io
import sys
from functools import partial
from pathlib import Path

from PIL import Image, PngImagePlugin

from research import evidence, external, findings, horizons, law_page, numbers, pair_law, plane
from research.blocks import PLOTS, RESULTS, ROOT, STUDIES, blocks_of, rewrite, study_tables
from research.record import FILE, Record
from study.figures import FIGURES, draw_all, save
from study.report import as_markdown, read_report
from study.store import write_output
from study.store.files import remove, write_text

COLOURS = 256
PARTS = (numbers, findings, external, horizons, law_page, plane, pair_law)
BLOCKS = {name: block for part in PARTS for name, block in blocks_of(part).items()}
"""By the name in the documents."""
say = partial(print, file=sys.stderr)


def documents() -> list[Path]:
    """Every document that may show a number."""
    return sorted([*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", *ROOT.glob("docs/**/*.md")])


def write_documents() -> None:
    """Write the blocks of every document whose text, tables or code changed, and the record."""
    record = Record(BLOCKS)
    for path in documents():
        old = path.read_text()
        new = rewrite(old, BLOCKS, say, record)
        if new != old:
            path.write_text(new)
            say(f"new numbers in {path.relative_to(ROOT)}")
    write_text(FILE, record.text())


def draw_study(name: str) -> list[str]:
    """Draw the pictures of a study and write its report.

    Returns a line on what was done, and one for each figure that lacks its data.
    """
    tables, folder = study_tables(name), PLOTS / name
    said, drawn = [f"drew {name}"], []
    asked = [figure for figure in FIGURES if figure in STUDIES[name]["figures"]]
    for figure, page in draw_all(tables, said.append, asked):
        [path] = save(page, folder, figure, ["png"])
        slim(path)
        drawn.append(figure)
    for path in folder.glob("*.png"):
        if path.stem not in drawn:
            remove(path)
    report = read_report(RESULTS / name, tables, drawn, findings.entries(name))
    write_output(folder / "report.md", as_markdown(report, folder, folder))
    return said


def slim(path: Path) -> None:
    """Reduce the colours of a PNG in place: a third of the size. Its texts stay; equal pictures
    give equal bytes.
    """
    with Image.open(path) as picture:
        texts = PngImagePlugin.PngInfo()
        for key, text in picture.text.items():  # type: ignore[attr-defined]
            texts.add_text(key, text)
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        page = io.BytesIO()
        few.save(page, "png", optimize=True, pnginfo=texts, dpi=picture.info.get("dpi"))
    write_output(path, page.getvalue())


def draw_pictures() -> None:
    """Draw the pictures of the studies and of the laws again."""
    for name in sorted(STUDIES):
        for line in draw_study(name):
            say(line)
    drawn = {"one_constant": external.one_constant(), "left_out": law_page.left_out()}
    drawn |= {"hero": horizons.hero(), "hero_stacked": horizons.hero(stacked=True)}
    drawn["best_by_steps"] = horizons.best_by_steps()
    drawn["r_sign_by_step"] = horizons.r_parts_by_step()
    drawn |= plane.drawn()
    for name, figure in drawn.items():
        slim(save(figure, PLOTS, name, ["png"])[0])
    say(f"drew {PLOTS.relative_to(ROOT)} from {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    write_text(evidence.FILE, evidence.text())
    draw_pictures()
    write_documents()
