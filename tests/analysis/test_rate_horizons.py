"""Best rates at several horizons of the same runs, and the rates that a sweep lacks."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.analysis.grouping import seed_numbers
from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import (
    best_rates,
    best_rates_of,
    exponents_against_rho,
    missing_rates,
    rates_by_horizon,
)
from study.figures.against_rate import rate_exponent_vs_rho
from tests.figures.conftest import artists, said

from .losses import LORA, NO_PROBES, POWER, RANKS, basin, runs

RATES = tuple(2.0 ** np.arange(-16, 0))


def recorded(cells):
    """Probes with ``rho = 100 lr step`` and ``r_sign = 9`` in every cell."""
    place = {"batch": "train", "layer": "a", "d_in": 64.0, "d_out": 64.0}
    rows = []
    for cell, lr in cells[["cell_id", "lr"]].itertuples(index=False):
        rows += [{**place, "cell_id": cell, "step": 1, "site": "adapter_out", "r_sign": 9.0}]
        rows += [
            {**place, "cell_id": cell, "step": step, "site": "A", "rho": 100 * lr * step}
            for step in (8, 32)
        ]
    return pd.DataFrame(rows)


def study():
    """The best rate is ``0.1 / sqrt(r)`` over the step."""
    loss = lambda c: basin(lambda p, seed: -0.5, 0.1 / c["step"])(c)  # noqa: E731
    cells, metrics = runs(loss, rates=RATES, rules=POWER, steps=(8, 32))
    probes, none = recorded(cells), pd.DataFrame()
    cells = cells.assign(steps=32)
    return SimpleNamespace(cells=cells, metrics=metrics, probes=probes, exponents=none)


def horizons(tables):
    return rates_by_horizon(tables.cells, tables.metrics, tables.probes)


def test_each_horizon_has_its_best_rates():
    rates = horizons(study())
    for step in (8, 32):
        own = rates[rates["horizon"] == step]
        assert own["best_lr"].to_numpy() == pytest.approx(0.1 / step * own["rank"] ** -0.5)
        nearest = [min(RATES, key=lambda lr: abs(math.log(lr / best))) for best in own["best_lr"]]
        assert own["rho"].to_numpy() == pytest.approx(100 * step * np.array(nearest))


def test_shorter_runs_of_another_setting_take_no_horizon_away():
    tables = study()
    cells, metrics = runs(lambda _: 2.0, rates=RATES, rules=LORA, steps=(16,))
    tables.cells = pd.concat([tables.cells, cells.assign(cell_id="s" + cells["cell_id"], steps=16)])
    tables.metrics = pd.concat([tables.metrics, metrics.assign(cell_id="s" + metrics["cell_id"])])
    of = horizons(tables).groupby("horizon")["scaling"].unique()
    assert of.map(list).to_dict() == {8: ["power"], 16: ["lora"], 32: ["power"]}


def test_a_run_that_broke_later_counts_until_then():
    """The best rate of 32 steps is twice that of 64, and higher rates diverge between the two."""
    at = {32: 4e-3, 64: 1e-3}
    loss = lambda c: 2 + 0.05 * math.log(c["lr"] / at[c["step"]]) ** 2  # noqa: E731
    late = lambda c: math.nan if c["step"] == 64 and c["lr"] > 3e-3 else loss(c)  # noqa: E731
    cells, metrics = runs(late, rates=tuple(1e-3 * 2.0 ** np.arange(-3, 4)), steps=(32, 64))
    cells = cells.assign(steps=64, precision="float32", batch_size=4, accumulation=1)
    cells = cells.assign(crossover=math.nan, schedule="constant")
    cells["diverged_step"] = np.where(cells["status"] == "diverged", 50.0, math.nan)
    found = best_rates_of(SimpleNamespace(cells=cells, metrics=metrics.dropna()), "s")
    half = found[found["steps"] == 32]
    assert np.exp(half["log_lr"]).to_numpy() == pytest.approx(4e-3)


def test_a_seed_has_the_number_that_it_has_among_all_cells():
    cells, metrics = runs(basin(lambda p, seed: -0.1 * seed), rules=LORA, seeds=(1, 2, 3))
    begun = cells[cells["seed"] == 1].assign(seed=0, data_seed=0, status="running")
    cells = pd.concat([begun.assign(cell_id="b" + begun["cell_id"]), cells])
    rates = best_rates(cells, metrics, NO_PROBES)
    assert dict(zip(cells["seed"], seed_numbers(cells), strict=True)) == {n: n for n in range(4)}
    assert set(rates["seed"]) == {1, 2, 3}


def test_a_schedule_has_one_horizon_its_end():
    """During a cosine the rate is not yet small, so its losses are not those of a shorter run."""
    tables = study()
    tables.cells = tables.cells.assign(schedule="cosine", steps=32)
    rates = horizons(tables)
    assert set(rates["horizon"]) == {32}
    assert rates["best_lr"].to_numpy() == pytest.approx(0.1 / 32 * rates["rank"] ** -0.5)


def test_exponents_beside_rho_and_the_crossover():
    tables = study()
    table = exponents_against_rho(horizons(tables))
    assert list(table["horizon"]) == [8, 32]
    assert table["exponent"].to_numpy() == pytest.approx(-0.5)
    bend = np.polyfit(np.log(RANKS), [math.log(r * math.sqrt(1 + 8 / r)) for r in RANKS], 1)[0]
    row = table.iloc[-1]
    assert row["output_slope"] == pytest.approx(bend)
    assert row["at_rho_high"] == pytest.approx(rate_exponent(bend, row["rho"]))
    assert row["at_rho_low"] == pytest.approx(rate_exponent(1.0, row["rho"])), "the descent"
    assert row["rho_low"] < row["rho"] < row["rho_high"]
    figure = rate_exponent_vs_rho(tables)
    [late], [early] = (artists(figure, f"{part} power p=0") for part in ("point", "early"))
    for point, (_, one) in zip((early, late), table.iterrows(), strict=True):
        assert point.get_xydata()[0] == pytest.approx([one["rho"], one["exponent"]])
    assert "Open: after 8 steps instead of 32." in said(figure)


# What a sweep lacks.


def at(best):
    return basin(lambda p, seed: 0.0, best)


@pytest.mark.parametrize(
    ("loss", "rates", "lacking"),
    [
        # steps of 2 around the best, also rounded ones
        (at(1e-3), (5e-4, 1e-3, 2e-3), []),
        (at(1e-3), (2.5e-4, 5.01e-4, 1e-3, 2e-3), []),
        # a best rate at an edge
        (at(1e-3), (2.5e-4, 5e-4), [(1e-3,)]),
        (at(1e-4), (1e-3, 2e-3), [(5e-4,)]),
        # a wide step beside the best
        (at(1e-3), (1e-4, 1e-3, 1e-2), [(5e-4, 2e-3)]),
        (at(1e-3), (5e-4, 1e-3, 1e-2), [(2e-3,)]),
        # what one seed needs is for all
        (lambda c: at(1e-3 if c["seed"] else 4e-3)(c), (5e-4, 1e-3, 2e-3), [(4e-3,)]),
    ],
)
def test_what_a_sweep_lacks(loss, rates, lacking):
    cells, metrics = runs(loss, rates=rates, ranks=(4,), rules=LORA)
    found = missing_rates(cells, metrics)
    assert all(one.swept[1:] == ["seed=0,1,2"] for one in found)
    assert [tuple(one.rates) for one in found] == lacking
