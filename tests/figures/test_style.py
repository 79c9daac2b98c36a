"""Files of figures: atomic and reproducible, and they say which cells they show."""

from pathlib import Path

import pytest
from matplotlib.image import imread
from PIL import Image

from study.figures import FIGURES, draw_all, save, style
from tests.figures.conftest import said, tiny


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


def test_every_figure_ends_with_the_settings_of_its_cells() -> None:
    rest = {"batch_size": 4, "accumulation": 1, "sequence_length": 48, "steps": 6}
    rates = [{"lr": 1e-4}, {"lr": 1e-3}]
    drawn = dict(draw_all(tiny(settings=[rest | one for one in rates])))
    assert len(drawn) > 8
    for name, figure in drawn.items():
        line = str(figure.get_label())
        assert said(figure).endswith(line) or line in said(figure), name
        assert "several learning rates, α = 16, batch 4 × 48 tokens, 2 seeds, 6 steps" in line, name


@pytest.mark.parametrize("ranks", [[4.0, 8.0, 16.0], [4.0 * 2**k for k in range(10)]])
def test_the_first_and_the_last_rank_are_always_drawn(ranks: list[float]) -> None:
    drawn = style.ranks_to_draw([*ranks, float("inf")])
    assert len(drawn) <= style.MOST_LABELS
    assert (drawn[0], drawn[-2], drawn[-1]) == (ranks[0], ranks[-1], float("inf"))
