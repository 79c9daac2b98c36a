"""Files of figures: atomic and reproducible, and they say which cells they show."""

from pathlib import Path

from matplotlib.image import imread
from PIL import Image

from study.figures import FIGURES, save, style


def test_files_are_reproducible_and_carry_fonts_and_settings(small, tmp_path: Path) -> None:
    figure = FIGURES["grad_norm_vs_rank"](small)
    png, pdf = save(figure, tmp_path / "plots" / "new", "grad")
    assert sorted(path.name for path in png.parent.iterdir()) == ["grad.pdf", "grad.png"]
    assert imread(png).shape[1] == int(6.75 * style.DPI)
    page = pdf.read_bytes()
    assert b"/FontFile2" in page
    assert b"/Type3" not in page
    assert b"CreationDate" not in page
    metadata = Image.open(png).info
    assert metadata["Description"] == figure.get_label()
    assert "Software" not in metadata
    assert "SmolLM2".encode("utf-16-be") in page
    first = [png.read_bytes(), page]
    for again in (figure, FIGURES["grad_norm_vs_rank"](small)):
        assert [path.read_bytes() for path in save(again, tmp_path, "again")] == first
