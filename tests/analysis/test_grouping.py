"""Curves are separated by whatever differs between their cells, and labels name it."""

from collections.abc import Callable

import pandas as pd
import pytest

from study.analysis import fit_exponents, summary, with_verdicts
from study.analysis.wording import setting_labels

Study = Callable[..., tuple[pd.DataFrame, pd.DataFrame]]
SLOPES = {
    "betas": {"0.9,0.999": -0.5, "0.8,0.999": -0.25},
    "optimizer_alpha": {0.99: -0.5, 0.9: -0.25},
    "data_sha256": {"1a2b3c4d5e6f": -0.5, "f0e1d2c3b4a5": -0.25},
    "never_heard_of": {1: -0.5, 2: 0.25},
}


def labels(cells: pd.DataFrame, probes: pd.DataFrame) -> dict[str, float]:
    """The label of each curve with its exponent. A rank counts once for each seed."""
    fits = fit_exponents(cells, probes)
    assert (fits["points"] == 15).all()
    found = summary(with_verdicts(fits))
    return dict(zip(found["curve"], found["exponent"].round(9), strict=True))


@pytest.mark.parametrize("column", SLOPES)
def test_sweeps_that_differ_in_one_column_are_two_curves(study: Study, column: str) -> None:
    slopes = SLOPES[column]
    law = {("adapter_grad", "norm"): lambda cell, layer, step: cell["rank"] ** slopes[cell[column]]}
    found = labels(*study(law, **{column: tuple(slopes)}))
    assert found == {f"{column}={value}": slope for value, slope in slopes.items()}


def test_labels_omit_what_the_optimizer_implies(study: Study) -> None:
    law = {("adapter_grad", "norm"): lambda cell, layer, step: cell["rank"] ** -0.5}
    cells, probes = study(law, optimizer=("adamw", "rmsprop"))
    implied = cells["optimizer"].map({"adamw": "0.9,0.999", "rmsprop": None})
    assert set(labels(cells.assign(betas=implied), probes)) == {""}


def test_a_setting_is_named_by_what_it_has_otherwise_than_most() -> None:
    """If no setting has the most frequent value of every column, a name has all values."""
    rows = pd.DataFrame({"dropout": [0.0, 0.1, 0.0], "warmup": [0, 0, 5]})
    assert setting_labels(rows, list(rows)) == ["common setting", "dropout=0.1", "warmup=5"]
    grid = pd.DataFrame({"alpha": [4.0, 256.0, 256.0], "lr": [1e-3, 1e-3, 1e-4]})
    assert setting_labels(grid, list(grid)) == ["alpha=4", "common setting", "lr=0.0001"]
    others = pd.DataFrame({"alpha": [4.0, 256.0, 256.0], "lr": [1e-3, 1e-4, 1e-5]})
    full = ["alpha=4, lr=0.001", "alpha=256, lr=0.0001", "alpha=256, lr=1e-05"]
    assert setting_labels(others, list(others)) == full
    assert setting_labels(rows, []) == [""] * 3
