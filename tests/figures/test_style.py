"""Files of figures: atomic and reproducible, with the settings of their cells; the command."""

from pathlib import Path

from matplotlib.image import imread
from PIL import Image

from study.figures import FIGURES, save, style


def test_files_are_reproducible_and_carry_fonts_and_settings(small, tmp_path):
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


NAME = "grad_norm_vs_rank"


def test_some_figures_in_some_formats_in_the_studys_plots_dir(study_cli, works, short, here):
    where = ["results_dir=a/results", "plots_dir=a/pictures/all", "name=mine"]
    works("train", "-m", *short, *where, "adapter.rank=2,4", "probes.stats=[norm]")
    drawn = works("figures", "a/results/mine", "--only", NAME, "--formats", "svg,png")
    folder = Path("a/pictures/all/mine")
    assert drawn.out.split() == [f"{folder}/{NAME}.svg", f"{folder}/{NAME}.png"]
    assert {path.name for path in folder.iterdir()} == {f"{NAME}.svg", f"{NAME}.png"}
    svg = (folder / f"{NAME}.svg").read_bytes()
    works("figures", "a/results/mine", "--only", NAME, "--formats", "svg")
    assert (folder / f"{NAME}.svg").read_bytes() == svg, "no date, no random names"

    both = ["--only", NAME, "--only", "learning_rate_basins"]
    absent = study_cli("figures", "a/results/mine", *both, "--to", "other")
    assert absent.code == 2
    assert absent.err.splitlines()[-1].startswith("study: no figure learning_rate_basins: ")
    assert {path.name for path in Path("other").iterdir()} == {f"{NAME}.png", f"{NAME}.pdf"}
    for option in ("--only=gif", "--formats=gif"):
        wrong = study_cli("figures", "a/results/mine", option)
        assert wrong.code == 2
        assert option.partition("=")[0] in wrong.err
        assert "'gif'" in wrong.err
