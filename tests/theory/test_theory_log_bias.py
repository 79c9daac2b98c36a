"""The mean of a log lies below the log of its curve: predicted slopes, against Monte Carlo."""

import math

import numpy as np
import pytest
from scipy import special

from study.theory import Layer, log_bias, predicted_exponent
from study.theory.log_gaps import product_gap, sum_gap
from tests.theory.measured_layer import measure_layer

from . import lazy_layer
from .lazy_layer import D_IN, D_OUT, Problem, named, problem, seed_slopes, sweep

RANKS = (4, 16, 64, 256)
WITHIN = 0.01
SEEDS = {"sgd": 2000, "signsgd": 500}
FIRST, SECOND = (
    ("B_grad", "B_update", "descent"),
    ("adapter_out", "delta_w", "adapter_in_grad", "A_grad", "B_grad", "B", "A_update"),
)
"""The sites of step 0 and of step 1, as Init[A] names them."""


def batch(tokens, power):
    """Inputs and output gradients whose entry i has the scale ``i ** -power``."""
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, D_IN)) / np.arange(1, D_IN + 1) ** power
    g = rng.standard_normal((tokens, D_OUT)) / np.arange(1, D_OUT + 1) ** power
    return Problem([(x, g / tokens)])


PROBLEMS = {
    "one token": problem(3, tokens=1),
    "a shared direction": problem(3, tokens=12),
    "large single entries": batch(40, power=0.7),
    "no direction": batch(12, power=0.0),
}


@pytest.mark.parametrize(
    ("case", "init"), [*((case, "A") for case in PROBLEMS), ("a shared direction", "B")]
)
@pytest.mark.parametrize("rule", SEEDS)
def test_the_slope_of_the_mean_log_is_predicted_without_a_measured_variance(rule, init, case):
    setting = PROBLEMS[case]
    layer = measure_layer(setting.gradient(0), *setting.batch(0), init)
    training = {"p": 0.5, "seeds": SEEDS[rule], "init": init, "steps": 1, "seed": 5}
    rows = sweep(getattr(lazy_layer, rule), setting, RANKS, **training)
    wrong = []
    for step, sites in enumerate((FIRST, SECOND)):
        for site in (named(site, init) for site in sites):
            place = ("adapter_update", "descent") if site == "descent" else (site, "norm")
            predicted = predicted_exponent(
                *place, RANKS, step=step, optimizer=rule, p=0.5, init=init, layer=layer
            )
            measured = seed_slopes(rows[step][site], RANKS)
            error = 2 * measured.std() / math.sqrt(len(measured))
            if abs(measured.mean() - predicted) > max(WITHIN, error):
                wrong.append(f"{site}: {measured.mean():.4f} ± {error:.4f}, {predicted:.4f}")
    assert not wrong


def test_a_sum_of_squares_is_a_chi_square():
    ranks = np.array([1.0, 2.0, 4.0, 64.0, 4096.0])
    exact = np.log(ranks / 2) - special.digamma(ranks / 2)
    np.testing.assert_allclose(sum_gap(1.0, 2, ranks), exact, rtol=1e-4)
    square = {"rho": 3.0, "share": 1.0}  # rho = 2 + r_align: the square of a chi square
    exact = np.log(ranks * (ranks + 2)) / 2 - np.log(2) - special.digamma(ranks / 2)
    np.testing.assert_allclose(product_gap("aligned", "linear", ranks, **square), exact, rtol=1e-4)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_other_moments_and_shares_against_draws(power):
    z = np.random.default_rng(power).standard_normal((200_000, 4))
    for share in (0.3, 1.0):
        total = ((share * z**2 + 1 - share) ** (power / 2)).sum(1)
        gap = np.log(total.mean()) - np.log(total).mean()
        assert sum_gap(share, power, [4]).item() == pytest.approx(gap, rel=0.02)


def test_a_gradient_without_a_measured_share_takes_that_of_its_alignment():
    assert Layer(r_align=5.0).share == pytest.approx(5**-0.25)
    assert Layer(r_align=5.0, r_eff=4.0).share == 0.5
    law = {"step": 1, "optimizer": "sgd", "p": 0.5}
    known = log_bias("B_grad", "norm", RANKS, layer=Layer(r_align=5.0), **law)
    assert known == pytest.approx(sum_gap(5**-0.25, 2, RANKS) / 2)
    assert (log_bias("B_grad", "norm", RANKS, **law) == 0).all(), "not known: no bias"
    assert np.isnan(log_bias("adapter_out", "rms", RANKS, **law)).all(), "no curve either"
