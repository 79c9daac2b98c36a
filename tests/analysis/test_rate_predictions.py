"""What theory says about the best learning rate, from recorded alignments and by simulation."""

import math

import numpy as np
import pandas as pd
import pytest

from research.rate_fits import bounds, fit_rates, left_out, moved, of_each
from study.analysis.rate_theory import K, log_outputs, predicted_interval, rate_exponent
from study.theory import Layer, curve

RANKS = (4.0, 16.0, 64.0, 256.0)
NONE = pd.DataFrame({name: [] for name in ("cell_id", "step", "layer", "site", "batch")})


def runs(optimizer, p, c=math.nan):
    """``c``: of the crossover rule, whose ``p`` is NaN."""
    cells = pd.DataFrame({"cell_id": [f"c{n}" for n in range(len(RANKS))], "rank": RANKS})
    rule = {"scaling": "crossover" if math.isnan(p) else "power", "exponent_p": p, "crossover": c}
    return cells.assign(optimizer=optimizer, init="kaiming", **rule)


def recorded(**layers):
    """``r_sign`` and ``r_align`` of layers, the same in every cell."""
    rows = [
        {"cell_id": f"c{n}", "layer": layer, "r_sign": value, "r_align": value, "step": step}
        for n in range(len(RANKS))
        for layer, value in layers.items()
        for step in (1, 3)
    ]
    return pd.DataFrame(rows).assign(site="adapter_out", batch="train", d_in=64.0)


def interval(optimizer, p, probes, c=math.nan):
    table = runs(optimizer, p, c)
    return predicted_interval(log_outputs(table, probes), table.iloc[0])


@pytest.mark.parametrize(("optimizer", "name"), [("adamw", "r_sign"), ("sgd", "r_align")])
def test_the_output_is_the_finite_rank_curve(optimizer, name):
    outputs = log_outputs(runs(optimizer, 0.5), recorded(a=9.0))
    law = {"step": 1, "optimizer": optimizer, "p": 0.5, "layer": Layer(d_in=64, **{name: 9.0})}
    of_curve = curve("adapter_out", "rms", RANKS, **law)
    assert np.ptp(np.log(of_curve) - outputs.to_numpy()) == pytest.approx(0.0, abs=1e-9)


def test_it_reaches_from_the_descent_to_the_output():
    """r sqrt(1 + 8/r) over ranks 4 to 256 has the slope 0.874, and the descent has 1."""
    x, y = np.log(RANKS), [math.log(r * math.sqrt(1 + 8 / r)) for r in RANKS]
    bend = np.polyfit(x, y, 1)[0]
    assert interval("adamw", 0.0, recorded(a=9.0)) == pytest.approx((-1, -bend / 2))
    assert interval("adamw", 0.5, recorded(a=9.0)) == pytest.approx((-0.5, (0.5 - bend) / 2))
    assert interval("adamw", 1.0, recorded(a=9.0)) == pytest.approx((0, 1 - bend))
    # With c = r_sign - 1, gamma r sqrt(1 + 8/r) does not depend on the rank.
    crossover = interval("adamw", math.nan, recorded(a=9.0), c=8.0)
    assert crossover == pytest.approx((bend - 1, 0), abs=1e-9)
    low, high = interval("sgd", 0.5, recorded(a=9.0))
    assert low == pytest.approx(0, abs=1e-9), "the descent is lr gamma^2 r"
    assert 0.05 < high < 0.2
    # Layers are averaged in the log.
    two = interval("adamw", 0.0, recorded(a=4.0, b=25.0))
    ends = [interval("adamw", 0.0, recorded(a=value)) for value in (4.0, 25.0)]
    assert two == pytest.approx(tuple(np.mean(ends, axis=0)))


def test_without_recorded_alignments_inputs_are_unrelated_to_the_gradient():
    sizes = recorded(a=9.0).drop(columns=["r_sign", "r_align"])
    assert interval("adamw", 0.0, sizes) == pytest.approx(
        interval("adamw", 0.0, recorded(a=math.pi / 2 * 64))
    )
    assert interval("adamw", 0.0, NONE) == pytest.approx((-1, -0.25), abs=1e-3), "sqrt(r)"


def test_a_censored_fit_finds_the_law_that_the_ranks_inside_their_rates_hide():
    """29 models of four ranks, r_sign 48 and s = 1/2. Each tried no rate above its own highest."""
    rng = np.random.default_rng(1)
    rates = pd.DataFrame({"rank": np.tile([1.0, 4, 16, 128], 29), "group": np.repeat(range(29), 4)})
    rates["gamma"] = 1 / rates["rank"]
    level, highest = np.repeat(rng.normal(0, 1, 29), 4), np.repeat(rng.normal(-0.3, 0.1, 29), 4)
    true = moved(rates, [math.log(48)]) + 0.1 * rng.standard_normal(len(rates))
    rates["log_lr"] = level + np.minimum(true, highest)
    rates["edge"] = np.where(true > highest, "highest", "")
    found = fit_rates(rates, moved, [2.0])
    low, high = np.exp(bounds(rates, moved, found))
    assert low < 48 < high < 6 * low
    assert found.scatter == pytest.approx(0.1, rel=0.25)
    free = fit_rates(rates, moved, [2.0, 1.0])
    assert free.found[1] == pytest.approx(0.5, abs=0.15)
    assert free.cost <= found.cost
    inside = fit_rates(rates[rates["edge"] == ""], moved, [2.0])
    assert np.exp(inside.found[0]) < 0.8 * np.exp(found.found[0]), "without the censored ranks"
    away, each = left_out(rates, moved, [2.0]), of_each(rates[rates["group"] > 14], moved, [2.0])
    assert away["constant"].between(math.log(low), math.log(high)).all()
    assert each["low"].lt(math.log(48)).mean() > 0.85 < each["high"].gt(math.log(48)).mean()


def test_the_numbers_of_the_page_on_one_constant():
    ranks = np.array([4.0, 256.0])
    rules = {"lora": 1 / ranks, "rslora": ranks**-0.5, "equal": ranks**0}
    rules["crossover"] = (ranks * (ranks + 40)) ** -0.5
    found = {
        name: math.exp(np.diff(moved(pd.DataFrame({"rank": ranks, "gamma": g}), [math.log(48)]))[0])
        for name, g in rules.items()
    }
    told = {"lora": 1.81, "rslora": 0.64, "equal": 0.23, "crossover": 1.03}
    assert found == pytest.approx(told, abs=0.005)


# The crossover of the exponent, against sign descent of one layer in numpy.

D, O = 64, 16  # noqa: E741


def trained(rank, L, inputs, seed, steps=8):
    """SignSGD of B A at gamma = 1 on a loss that is linear in the output: the output's rms, rho,
    and by how much the loss fell."""
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((inputs, D)), rng.standard_normal((inputs, O))
    A0 = rng.standard_normal((rank, D)) / math.sqrt(3 * D)
    A, B = A0.copy(), np.zeros((O, rank))
    for _ in range(steps):
        B, A = (B - L / steps * np.sign(dy.T @ (x @ A.T)), A - L / steps * np.sign((dy @ B).T @ x))
    rho = np.linalg.norm(x @ (A - A0).T) / np.linalg.norm(x @ A0.T)
    output = x @ A.T @ B.T
    return float(np.sqrt(np.mean(output**2))), float(rho), -float(np.sum(output * dy))


def test_the_output_of_one_input():
    """L M(r) (1 + k rho), by a fresh draw: ``||A0 x||_1`` is near its mean at a high rank.

    In the first step B is 0 and A does not move, so A makes 15 of 16 steps.
    """
    for L in (1e-4, 1e-2, 1.0):
        out, rho, _ = trained(4096, L, 1, seed=1, steps=16)
        rest, *_ = trained(4096, 1e-6, 1, seed=1, steps=16)
        assert out / L == pytest.approx(rest / 1e-6 * (1 + K * rho), rel=0.03), L


def best_rate(rank, move, seeds=6):
    """The log of L at which the output of one input moves by ``move``, and rho: means."""
    found = []
    for seed in range(seeds):
        low, high = -20.0, 5.0
        for _ in range(30):
            middle = (low + high) / 2
            out, rho, _ = trained(rank, math.exp(middle), 1, seed=1000 * rank + seed)
            low, high = (middle, high) if out < move else (low, middle)
        found.append((middle, math.log(rho)))
    log_rate, log_rho = np.mean(found, axis=0)
    return float(log_rate), math.exp(log_rho)


@pytest.mark.parametrize("move", [3e-3, 0.3, 1000.0])
def test_the_exponent_of_the_rate_that_moves_the_output_by_the_same_amount(move):
    low, high = (best_rate(rank, move) for rank in (64, 256))
    slope = (high[0] - low[0]) / math.log(4)
    rho = math.sqrt(low[1] * high[1])
    print(f"rho {rho:.3g}: {slope:.3f}, predicted {rate_exponent(1.0, rho):.3f}")
    assert slope == pytest.approx(rate_exponent(1.0, rho), abs=0.03)


def test_of_many_inputs_the_output_bends_and_the_descent_does_not():
    """The slopes over ranks 4 to 256, far below rho = 1 and far above it. So the rates with equal
    descents go as r^-1 and r^-1/2, and those with equal outputs less steeply."""
    ranks, outputs, descents = (4, 32, 256), [], []
    for L in (1e-6, 10.0):
        runs = [[trained(rank, L, 64, seed=100 * rank + n) for n in range(12)] for rank in ranks]
        logs = np.log(runs).mean(axis=1)
        output, _, descent = np.polyfit(np.log(ranks), logs, 1)[0]
        outputs.append(output)
        descents.append(descent)
    print(f"output {outputs}, descent {descents}")
    assert descents == pytest.approx([1.0, 1.0], abs=0.02)
    assert outputs[0] < 0.75
    assert outputs[0] + 0.06 < outputs[1] < 1.0, "through A: between the two"
