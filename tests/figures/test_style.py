"""Style: colours for colour-blind readers and grey prints; atomic, reproducible files."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from study.figures import FIGURES, save, style
from study.figures.selection import Rule

LORA, RSLORA, POWER = Rule.of("lora", None), Rule.of("rslora", None), Rule.of("power", 0.75)

# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.


# saving


@pytest.fixture(scope="module")
def figure(small: SimpleNamespace) -> Figure:
    return FIGURES["grad_norm_vs_rank"](small)


def test_saves_png_and_pdf_with_embedded_truetype_fonts(figure: Figure, tmp_path: Path) -> None:
    png, pdf = save(figure, tmp_path / "plots" / "new", "grad")
    assert (png.name, pdf.name) == ("grad.png", "grad.pdf")
    assert sorted(path.name for path in png.parent.iterdir()) == ["grad.pdf", "grad.png"]
    assert imread(png).shape[1] == int(6.75 * style.DPI)
    assert style.DPI >= 200
    page = pdf.read_bytes()
    assert b"/FontFile2" in page
    assert b"/Type3" not in page
    assert b"CreationDate" not in page


def test_the_same_figure_gives_the_same_bytes(
    figure: Figure, small: SimpleNamespace, tmp_path: Path
) -> None:
    first = [path.read_bytes() for path in save(figure, tmp_path, "a")]
    again = [path.read_bytes() for path in save(FIGURES["grad_norm_vs_rank"](small), tmp_path, "b")]
    saved_twice = [path.read_bytes() for path in save(figure, tmp_path, "c")]
    assert first == again == saved_twice
