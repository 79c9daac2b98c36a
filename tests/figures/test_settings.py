"""A figure says which cells it shows: in its last line, and as metadata of its files."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from study.figures import FIGURES, draw_all, save
from study.figures.captions import settings

KNOWN = {
    "model": "smollm2",
    "data": "pydoc",
    "optimizer": "adamw",
    "lr": 1e-4,
    "alpha": 16.0,
    "batch_size": 4,
    "accumulation": 2,
    "sequence_length": 48,
    "seed": 0,
    "data_seed": 0,
    "steps": 12,
}
LINE = "SmolLM2, pydoc, AdamW, learning rate 0.0001, α = 16, batch 8 × 48 tokens, 1 seed, 12 steps"


def cells(**columns: list[Any]) -> pd.DataFrame:
    rows = max(map(len, columns.values()), default=1)
    return pd.DataFrame({name: [value] * rows for name, value in KNOWN.items()} | columns)


def test_every_setting_is_named() -> None:
    assert settings(cells()) == LINE


@pytest.mark.parametrize(
    ("columns", "old", "new"),
    [
        ({"model": ["smollm2", "tiny"]}, "SmolLM2", "several models"),
        ({"data": ["pydoc", "jsonl"]}, "pydoc", "several data sets"),
        ({"optimizer": ["sgd", "adamw"]}, "AdamW", "several optimizers"),
        ({"lr": [1e-4, 1e-3]}, "learning rate 0.0001", "several learning rates"),
        ({"alpha": [16.0, 8.0]}, "α = 16", "several values of α"),
        ({"batch_size": [4, 8]}, "batch 8 × 48 tokens", "several batch sizes"),
        ({"batch_size": [4, 8], "accumulation": [2, 1]}, "", ""),
        (
            {"sequence_length": [48, 96]},
            "batch 8 × 48 tokens",
            "batch 8, several sequence lengths",
        ),
        ({"sequence_length": [np.nan]}, "8 × 48 tokens", "8 sequences"),
        ({"seed": [0, 1, 1], "data_seed": [0, 0, 0]}, "1 seed", "2 seeds"),
        ({"steps": [1]}, "12 steps", "1 step"),
        ({"steps": [12, 24]}, "12 steps", "several numbers of steps"),
        ({"alpha": [np.nan]}, "α = 16, ", ""),
    ],
)
def test_what_varies_is_several(columns: dict[str, list[Any]], old: str, new: str) -> None:
    assert settings(cells(**columns)) == LINE.replace(old, new)


@pytest.fixture(scope="module")
def sweep(tiny: Any) -> SimpleNamespace:
    """Two optimizers, AdamW at two learning rates, with every column of the line."""
    rest = {"batch_size": 4, "accumulation": 1, "sequence_length": 48, "steps": 6}
    return tiny(
        settings=[
            rest | {"lr": 1e-4},
            rest | {"lr": 1e-3},
            rest | {"optimizer": "sgd", "lr": 0.1},
        ]
    )


def last_line(figure: Figure) -> str:
    """The text below the panels without its line breaks."""
    return re.sub(r"\s+", " ", figure.get_supxlabel())


def test_every_figure_ends_with_the_settings_of_its_cells(sweep: SimpleNamespace) -> None:
    drawn = dict(draw_all(sweep))
    assert len(drawn) > 8
    for name, figure in drawn.items():
        line = str(figure.get_label())
        assert last_line(figure).endswith(line), name
        for part in ("SmolLM2, pydoc, ", "several learning rates, α = 16, batch 4 × 48 tokens"):
            assert part in line, name
        assert line.endswith("2 seeds, 6 steps"), name


def test_files_carry_the_settings(sweep: SimpleNamespace, tmp_path: Path) -> None:
    figure = FIGURES["descent_vs_rank"](sweep)
    png, pdf = save(figure, tmp_path, "descent")
    metadata = Image.open(png).info
    assert metadata["Description"] == figure.get_label()
    assert "Software" not in metadata
    assert "SmolLM2".encode("utf-16-be") in pdf.read_bytes()
