"""Learning-rate transfer with known best rates, and loss comparisons with known causes."""

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis import (
    best_rates,
    compared_losses,
    rank_effects,
    rate_transfer,
    rule_differences,
    task_scores,
)
from study.analysis.fits import mean_interval
from study.analysis.rates import bottom
from study.figures.final_loss import sweeps

RANKS = (4, 16, 64, 256)
RATES = tuple(10.0 ** np.arange(-6, 0, 0.5))
NO_PROBES = pd.DataFrame(
    {name: [] for name in ("cell_id", "step", "layer", "site", "batch", "rms")}
)
Loss = Callable[[dict[str, Any]], float]


def p_of(cell: dict[str, Any]) -> float:
    return {"lora": 1.0, "rslora": 0.5}.get(cell["scaling"], cell["exponent"])


def runs(
    loss: Loss,
    *,
    rates: Sequence[float] = RATES,
    rules: Sequence[tuple[str, float]] = (("lora", math.nan), ("rslora", math.nan), ("power", 0.0)),
    ranks: Sequence[int] = RANKS,
    seeds: Sequence[int] = (0, 1, 2),
    **fixed: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``cells`` and ``metrics``. ``loss(cell)``: the final held-out loss; NaN: the run diverged."""
    base = {
        "study": "s",
        "model": "m",
        "data": "d",
        "optimizer": "adamw",
        "init": "kaiming",
        "targets": "all-linear",
    }
    rows = []
    for (scaling, exponent), rank, lr, seed in itertools.product(rules, ranks, rates, seeds):
        cell = (
            base
            | {"alpha": 16.0}
            | fixed
            | {"scaling": scaling, "exponent": exponent, "rank": float(rank)}
        )
        cell |= {"lr": lr, "seed": seed, "data_seed": seed, "cell_id": f"{len(rows):05d}"}
        cell["gamma"] = cell["alpha"] * rank ** -p_of(cell)
        cell["loss"] = loss(cell)
        cell["status"] = "complete" if math.isfinite(cell["loss"]) else "diverged"
        rows.append(cell)
    cells = pd.DataFrame(rows)
    start = cells[["cell_id"]].assign(step=0, eval_loss=9.0)
    end = cells[["cell_id"]].assign(step=50, eval_loss=cells["loss"])
    return cells.drop(columns="loss"), pd.concat([start, end], ignore_index=True)


def basin(law: Callable[[float, float], float], centre: float = 3e-3) -> Loss:
    """A parabola in log lr with its minimum at ``centre * r ** law(p, seed)``."""
    return lambda c: (
        2.0
        + 0.05 * (math.log(c["lr"]) - math.log(centre * c["rank"] ** law(p_of(c), c["seed"]))) ** 2
    )


def test_the_minimum_of_a_parabola_is_found_exactly_at_uneven_rates() -> None:
    x = np.log(np.array([1e-5, 3e-5, 1e-4, 5e-4, 1e-3]))
    found = bottom(np.exp(x), 1.5 + 0.3 * (x - math.log(7e-5)) ** 2)
    assert found.lr == pytest.approx(7e-5)
    assert found.loss == pytest.approx(1.5)
    assert found.edge == ""


@pytest.mark.parametrize(
    ("loss", "lr", "edge"),
    [
        ([3.0, 2.0, 1.0], 1e-2, "highest"),
        ([1.0, 2.0, 3.0], 1e-4, "lowest"),
        # Bounded by a run that diverged: not an edge, and no parabola.
        ([3.0, 1.0, math.nan], 1e-3, ""),
        ([3.0, math.nan, math.nan], 1e-4, "lowest"),
        ([2.0, 2.0, 2.0], 1e-4, "lowest"),
    ],
)
def test_edges_and_divergence(loss: list[float], lr: float, edge: str) -> None:
    found = bottom(np.array([1e-4, 1e-3, 1e-2]), np.array(loss))
    assert found.lr == pytest.approx(lr)
    assert found.edge == edge


def test_the_exponent_of_the_best_rate() -> None:
    """Best rates at r^-(1-p)/1.5 with a tilt per seed: mean and interval in closed form."""
    tilt = {0: -0.02, 1: 0.0, 2: 0.03}
    cells, metrics = runs(
        basin(lambda p, seed: -(1 - p) / 1.5 + tilt[seed]),
        rates=tuple(10.0 ** np.arange(-8, 2, 0.4)),
    )
    table = rate_transfer(best_rates(cells, metrics, NO_PROBES)).set_index("exponent_p")
    mean, low, high = mean_interval(np.array(list(tilt.values())))
    for p in (0.0, 0.5, 1.0):
        row = table.loc[p]
        assert row["exponent"] == pytest.approx(-(1 - p) / 1.5 + mean)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(
            (-(1 - p) / 1.5 + low, -(1 - p) / 1.5 + high)
        )
        assert (row["seeds"], row["ranks"], row["edges"], row["interval"]) == (3, 4, 0, "seeds")
        assert row["se_grid"] == pytest.approx(0.0, abs=1e-9), "a parabola has no grid error"


def test_optima_at_an_edge_are_counted_and_left_out() -> None:
    cells, metrics = runs(
        basin(lambda p, seed: -1.0, centre=1e-2),
        rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        rules=(("power", 0.0),),
    )
    rates = best_rates(cells, metrics, NO_PROBES)
    # Minima at 2.5e-3, 6.3e-4, 1.6e-4 and 3.9e-5: the last is below all rates tried.
    assert dict(rates.groupby("rank")["edge"].first()) == {
        4.0: "",
        16.0: "",
        64.0: "lowest",
        256.0: "lowest",
    }
    [row] = rate_transfer(rates).to_dict("records")
    assert row["edges"] == 6
    assert row["exponent"] == pytest.approx(-1.0)
    assert row["rank_max"] == 16


def interrupted(cells: pd.DataFrame, lrs: Sequence[float], rank: int = 256) -> pd.Series:
    """The cells of ``rank`` that had not run yet: all but those at ``lrs``."""
    return (cells["rank"] == rank) & ~cells["lr"].isin(lrs)


def test_a_rank_of_an_interrupted_sweep_has_its_best_rate_at_an_edge() -> None:
    """The sweep stopped when the last rank had run at the lowest two rates only."""
    cells, metrics = runs(basin(lambda p, seed: 0.0), rates=RATES, rules=(("lora", math.nan),))
    cells.loc[interrupted(cells, RATES[:2]), "status"] = "running"
    rates = best_rates(cells, metrics, NO_PROBES)
    last = rates[rates["rank"] == 256]
    assert set(last["tried"]) == {2}
    assert set(last["edge"]) == {"highest"}
    [row] = rate_transfer(rates).to_dict("records")
    assert (row["ranks"], row["rank_max"]) == (3, 64), "no exponent is fitted to it"
    assert row["exponent"] == pytest.approx(0.0, abs=1e-9)
    cells.loc[interrupted(cells, RATES[:1]), "status"] = "running"
    assert set(best_rates(cells, metrics, NO_PROBES)["rank"]) == {4, 16, 64}, "one is no choice"
    losses = compared_losses(cells, metrics, NO_PROBES)
    assert "best" not in set(losses["how"])


@pytest.mark.parametrize("status", ["diverged", "stuck"])
def test_a_run_that_diverged_or_got_stuck_was_tried(status: str) -> None:
    cells, metrics = runs(basin(lambda p, seed: 0.0), rules=(("lora", math.nan),))
    lost = (cells["rank"] == 256) & (cells["lr"] > 0.02)
    cells.loc[lost, "status"] = status
    rates = best_rates(cells, metrics, NO_PROBES)
    assert set(rates["tried"]) == {len(RATES)}
    assert set(rates["edge"]) == {""}


def test_the_best_rate_is_that_of_the_mean_over_seeds() -> None:
    """Each seed is lucky at a rate of its own. No rate has the mean of their best losses."""
    own = {0: 1e-4, 1: 1e-3, 2: 1e-2}
    lucky = lambda c: 2.0 if c["lr"] == own[c["seed"]] else 2.3 - 0.03 * (c["lr"] == 1e-3)  # noqa: E731
    cells, metrics = runs(lucky, rates=tuple(own.values()), rules=(("lora", math.nan),))
    losses = compared_losses(cells, metrics, NO_PROBES).query("how == 'best'")
    assert set(losses["lr"]) == {1e-3}
    mean = losses.groupby("rank")["loss"].mean()
    assert mean.to_numpy() == pytest.approx((2.27 + 2.0 + 2.27) / 3)
    scores = task_scores(cells, metrics)
    assert np.log(scores["perplexity"].to_numpy()) == pytest.approx(mean.to_numpy())
    [sweep] = sweeps(SimpleNamespace(cells=cells, metrics=metrics))
    [rule] = sweep.family.rules
    assert [sweep.best(rule, rank).loss for rank in RANKS] == pytest.approx(mean.tolist())


# Rank, or only the step size.


def by_step_alone(cell: dict[str, Any]) -> float:
    """A loss that depends on the step size only, and falls with it: a larger gamma always helps."""
    power = 2 if cell["optimizer"] == "sgd" else 1
    return 3.0 - 0.1 * math.log(cell["lr"] * cell["gamma"] ** power) + 0.001 * cell["seed"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_if_only_the_step_matters_the_matched_difference_is_0(optimizer: str) -> None:
    cells, metrics = runs(
        by_step_alone, optimizer=optimizer, rules=(("lora", math.nan), ("rslora", math.nan))
    )
    differences = rule_differences(compared_losses(cells, metrics, NO_PROBES))
    fixed, matched = (differences[differences["how"] == how] for how in ("fixed", "matched"))
    power = 2 if optimizer == "sgd" else 1
    # gamma of LoRA is r^-1/2 of rsLoRA's: its loss is higher by 0.05 ln r, or twice that under SGD.
    assert fixed["difference"].to_numpy() == pytest.approx(
        0.05 * power * np.log(fixed["rank"].to_numpy())
    )
    assert len(matched) > 4
    assert matched["difference"].to_numpy() == pytest.approx(0.0, abs=1e-9)
    assert (matched["seeds"] == 3).all()


def test_if_the_rule_matters_the_matched_difference_is_its_penalty() -> None:
    penalty = lambda c: by_step_alone(c) + (0.25 if c["scaling"] == "lora" else 0.0)  # noqa: E731
    cells, metrics = runs(penalty, rules=(("lora", math.nan), ("rslora", math.nan)))
    matched = rule_differences(compared_losses(cells, metrics, NO_PROBES)).query("how == 'matched'")
    assert matched["difference"].to_numpy() == pytest.approx(0.25)


def test_what_a_doubling_of_the_rank_gains() -> None:
    """At a fixed rate, 0.02 nats per doubling, varying by seed; at the best rate, 0."""
    own = {0: 0.01, 1: 0.02, 2: 0.03}
    fall = lambda c: 3 - own[c["seed"]] * math.log2(c["rank"])  # noqa: E731
    cells, metrics = runs(fall, rates=(1e-3,), rules=(("rslora", math.nan),))
    [row] = rank_effects(compared_losses(cells, metrics, NO_PROBES)).to_dict("records")
    assert row["gain"] == pytest.approx(0.02)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(
        mean_interval(np.array([0.01, 0.02, 0.03]))[1:]
    )
    level, ends = runs(
        basin(lambda p, seed: -0.5),
        rates=tuple(3e-3 * 2.0 ** np.arange(-8, 5)),
        rules=(("rslora", math.nan),),
    )
    effects = rank_effects(compared_losses(level, ends, NO_PROBES)).set_index("how")
    assert effects.loc["best", "gain"] == pytest.approx(0.0, abs=1e-9)
    assert abs(effects.loc["fixed", "gain"]) > 0.01
