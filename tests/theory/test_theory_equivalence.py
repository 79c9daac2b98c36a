"""Equivalent runs: exact ones within rounding, first updates by Monte Carlo."""

import numpy as np
import pytest

from study.theory import measure_layer, move

from .lazy_layer import D_IN, D_OUT, gaussian, kaiming, problem, sgd, signsgd, sweep, train

RULES = {"sgd": sgd, "signsgd": signsgd}


@pytest.mark.parametrize("init", ["A", "B"])
def test_the_first_sgd_step_is_the_gradient_through_the_gram_matrix_of_the_init(init):
    gamma, lr, rng, setting = 0.5, 0.3, np.random.default_rng(0), problem(0, 4)
    A, B = kaiming(rng, (2, 6, D_IN), D_IN), kaiming(rng, (2, D_OUT, 6), D_OUT)
    A, B = (A, 0 * B) if init == "A" else (0 * A, B)
    _, row = train(sgd, setting, A, B, gamma, lr=lr, steps=1, curvature=1.0)
    G = setting.gradient(0)
    expected = -lr * gamma**2 * (G @ A.mT @ A if init == "A" else B @ B.mT @ G)
    np.testing.assert_allclose(row["delta_w"], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("optimizer", "power"), [("sgd", 2), ("signsgd", 1)])
def test_what_undoes_a_move_keeps_the_measured_output(optimizer, power):
    """From rank 8 of LoRA to rank 64 of rsLoRA, by gamma or by the learning rate."""
    lr, gamma, setting = 1e-9, 16 / 8, problem(3)
    x, g = setting.batch(0)
    layer = measure_layer(setting.gradient(0), x, g, kurtosis=0.0)
    grown = move(64, gamma, optimizer, layer) / move(8, gamma, optimizer, layer)

    def size(rank, gamma, lr):
        # sweep's gamma is rank**-p: this p makes it the wanted one.
        training = {"p": -np.log(gamma) / np.log(rank), "seeds": 400, "draw": gaussian, "lr": lr}
        rows = sweep(RULES[optimizer], setting, (rank,), stat="rms", steps=1, **training)[1]
        return np.sqrt(np.square(rows["adapter_out"][0]).mean())

    old = size(8, gamma, lr)
    assert grown != pytest.approx(1, rel=0.5)
    assert size(64, gamma, lr) / old == pytest.approx(grown, rel=0.04)
    assert size(64, gamma * grown ** (-1 / power), lr) == pytest.approx(old, rel=0.04)
    assert size(64, gamma, lr / grown) == pytest.approx(old, rel=0.04)
