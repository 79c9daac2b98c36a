"""The exponent of the best learning rate against rho."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.rate_theory import K, rate_exponent
from study.analysis.rates import exponents_against_rho, rates_by_horizon
from study.figures.against_rate import rate_exponent_vs_rho
from tests.analysis.losses import runs
from tests.figures.conftest import artists, said

RANKS, R_SIGN, MOVE = (4, 256), 9.0, 100.0
BASE = {"study": "s", "model": "tiny", "data": "pydoc", "schedule": "constant"}
RULES = (("power", 0.0), ("power", 0.5), ("power", 1.0))


def best(gamma: float, rank: float) -> float:
    """The rate that moves the output by MOVE, with rho = lr."""
    asked = MOVE / (gamma * math.sqrt(rank * (rank + R_SIGN - 1)))
    return 2 * asked / (1 + math.sqrt(1 + 4 * K * asked))


def study() -> SimpleNamespace:
    """A study whose best rates follow the crossover, each rank with rates of its own.

    At step 10 the best rates are those at step 20 to the power 1.1.
    """
    parts: list[list[pd.DataFrame]] = []
    for rule, alpha, rank in itertools.product(RULES, (0.01, 1.0, 1e4), RANKS):
        centre = best(alpha * rank ** -rule[1], rank)

        def loss(cell: dict[str, Any], centre: float = centre) -> float:
            return 2.0 + 0.1 * (math.log(cell["lr"] / centre) - 0.05 * (cell["seed"] - 1)) ** 2

        plan = {"rates": tuple(centre * 1.1 * 2.0**k for k in range(-2, 3)), "seeds": (0, 1, 2)}
        fixed = {**BASE, "alpha": alpha, "optimizer": "adamw"}
        one = runs(loss, ranks=(rank,), rules=(rule,), **plan, **fixed)
        parts.append([t.assign(cell_id=f"{len(parts)}-" + t["cell_id"]) for t in one])
    cells, metrics = (pd.concat(each, ignore_index=True) for each in zip(*parts, strict=True))
    early = metrics[metrics["step"] == 50].assign(step=20)
    place = {"batch": "train", "layer": "a", "d_in": 64.0, "d_out": 64.0}
    probes = [cells[["cell_id"]].assign(**place, step=1, site="adapter_out", r_sign=R_SIGN)]
    for step in (20, 50):
        rho = cells["lr"] * step / 50
        probes.append(cells[["cell_id"]].assign(**place, step=step, site="A", rho=rho))
    return SimpleNamespace(
        cells=cells,
        metrics=pd.concat([early, metrics], ignore_index=True),
        probes=pd.concat(probes, ignore_index=True),
        exponents=pd.DataFrame(),
    )


def test_points_are_those_of_the_analysis_and_lie_on_the_band() -> None:
    tables = study()
    found = exponents_against_rho(rates_by_horizon(tables.cells, tables.metrics, tables.probes))
    last = found[found["horizon"] == 50]
    figure = rate_exponent_vs_rho(tables)
    for p in (0.5, 1):
        own = last[np.isclose(last["exponent_p"], p)]
        drawn = [a.get_xydata()[0] for a in artists(figure, f"point power p={p:g}")]
        expected = own[["rho", "exponent"]].to_numpy(float)
        np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(map(tuple, expected)))
        assert len(artists(figure, f"early power p={p:g}")) == 3
        # The study was made with equal outputs: one edge of the band.
        for row in own.to_dict("records"):
            assert row["exponent"] == pytest.approx(
                rate_exponent(row["output_slope"], row["rho"]), abs=0.05
            )
    [band] = artists(figure, "band power p=0.5")
    y = band.get_paths()[0].vertices[:, 1]
    m = float(last.loc[np.isclose(last["exponent_p"], 0.5), "output_slope"].iloc[0])
    assert y.min() == pytest.approx(-0.5, abs=0.01), "the descent, while A hardly moves"
    assert y.max() == pytest.approx(-m / 2, abs=0.01), "the output, once A has moved far"
    assert "Open: after 20 steps instead of 50." in said(figure)
