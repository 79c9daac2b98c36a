"""``study figures``: some figures, other formats, and the folder that a study was trained with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
NAME = "grad_norm_vs_rank"


def test_some_figures_in_some_formats_in_the_studys_plots_dir(
    study_cli: Cli, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data=file", f"data.path={jsonl}", "data.sequence_length=32", "data.heldout=2"]
    small = ["model=tiny", *data, "train.batch_size=2", "train.steps=1", "probes.stats=[norm]"]
    where = ["results_dir=a/results", "plots_dir=a/pictures/all", "name=mine"]
    ran = study_cli("train", "-m", *small, *where, "adapter.rank=2,4")
    assert ran.code == 0, ran.err
    drawn = study_cli("figures", "a/results/mine", "--only", NAME, "--formats", "svg,png")
    assert drawn.code == 0, drawn.err
    folder = Path("a/pictures/all/mine")
    assert drawn.out.split() == [f"{folder}/{NAME}.svg", f"{folder}/{NAME}.png"]
    assert {path.name for path in folder.iterdir()} == {f"{NAME}.svg", f"{NAME}.png"}
    svg = (folder / f"{NAME}.svg").read_bytes()
    study_cli("figures", "a/results/mine", "--only", NAME, "--formats", "svg")
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
