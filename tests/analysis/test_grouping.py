"""Curves are separated by whatever differs between their cells, and labels name it."""

from collections.abc import Callable

import pandas as pd
import pytest

from study.analysis import fit_exponents, summary, with_verdicts

Study = Callable[..., tuple[pd.DataFrame, pd.DataFrame]]
SLOPES = {
    "betas": {"0.9,0.999": -0.5, "0.8,0.999": -0.25},
    "optimizer_alpha": {0.99: -0.5, 0.9: -0.25},
    "data_sha256": {"1a2b3c4d5e6f": -0.5, "f0e1d2c3b4a5": -0.25},
}


def labels(cells: pd.DataFrame, probes: pd.DataFrame) -> dict[str, float]:
    """The label of each curve with its exponent."""
    found = summary(with_verdicts(fit_exponents(cells, probes)))
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
