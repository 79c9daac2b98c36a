"""Exact identities: equal within rounding, not in expectation."""

import numpy as np
import pytest

from study.theory import predict
from study.vocabulary import scaling

from .lazy_layer import D_IN as D
from .lazy_layer import D_OUT as O
from .lazy_layer import adam, kaiming, problem, sgd, signsgd, train


def run(rule, c=1.0, gamma=0.5, init="A", rank=6, **training):
    """Three steps far from lazy, from a fixed draw; factors scaled by c and gamma by 1/c^2."""
    rng = np.random.default_rng(0)
    A, B = kaiming(rng, (2, rank, D), D), kaiming(rng, (2, O, rank), O)
    A, B = (A, 0 * B) if init == "A" else (0 * A, B)
    return list(train(rule, problem(0, 4), c * A, c * B, gamma / c**2, curvature=1.0, **training))


@pytest.mark.parametrize("rank", [1, 4, 64, 2048])
def test_lora_at_alpha_sqrt_r_is_rslora_at_alpha(rank):
    assert scaling.gamma("lora", 16 * rank**0.5, rank) == pytest.approx(
        scaling.gamma("rslora", 16, rank), rel=1e-15
    )


@pytest.mark.parametrize("init", ["A", "B"])
def test_the_first_sgd_step_is_the_gradient_through_the_gram_matrix_of_the_init(init):
    gamma, lr = 0.5, 0.3
    rows = run(sgd, gamma=gamma, lr=lr, init=init, steps=1)
    G = problem(0, 4).gradient(0)
    A, B = rows[0]["A"], rows[0]["B"]
    expected = -lr * gamma**2 * (G @ A.mT @ A if init == "A" else B @ B.mT @ G)
    np.testing.assert_allclose(rows[1]["delta_w"], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("init", ["A", "B"])
@pytest.mark.parametrize("c", [0.2, 3.0])
def test_scaling_factors_by_c_and_gamma_by_its_square_changes_nothing_given_the_learning_rate(
    c, init
):
    """SGD: lr c^2, decay / c^2. Adam: lr c, eps / c, decoupled decay / c (lr * decay shrinks A)."""

    def adam_with(eps):
        return lambda grad, state: adam(grad, state, eps=eps)

    cases = [
        (sgd, {"lr": 0.3}, sgd, {"lr": 0.3 * c**2}),
        (sgd, {"lr": 0.3, "decoupled": 0.1}, sgd, {"lr": 0.3 * c**2, "decoupled": 0.1 / c**2}),
        (signsgd, {"lr": 0.01}, signsgd, {"lr": 0.01 * c}),
        (
            adam_with(0.1),
            {"lr": 0.01, "decoupled": 0.1},
            adam_with(0.1 / c),
            {"lr": 0.01 * c, "decoupled": 0.1 / c},
        ),
    ]
    for rule, training, scaled_rule, scaled_training in cases:
        plain = run(rule, init=init, **training)
        scaled = run(scaled_rule, c=c, init=init, **scaled_training)
        for one, other in zip(plain, scaled, strict=True):
            for site in ("delta_w", "adapter_out", "adapter_in_grad", "descent"):
                np.testing.assert_allclose(other[site], one[site], rtol=1e-9, atol=1e-14)


def test_predictions_obey_the_scaling_identity():
    """c = r^-1/2: q + 1, p - 1, and lr times r^-1 (SGD) or r^-1/2 (sign) are the same function."""
    for optimizer, lr_exponent in (("sgd", -1.0), ("sign", -1 / 2)):
        for site, stat, updates in [
            ("adapter_out", "rms", 1),
            ("delta_w", "norm", 1),
            ("adapter_update", "descent", 1),
        ]:
            plain = predict(site, stat, step=1, optimizer=optimizer, p=0.7, q=0.0).exponent
            scaled = predict(site, stat, step=1, optimizer=optimizer, p=-0.3, q=1.0).exponent
            assert scaled + updates * lr_exponent == pytest.approx(plain)
