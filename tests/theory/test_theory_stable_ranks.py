"""The stable rank of delta_w against Monte Carlo of one lazy step."""

import math

import numpy as np
import pytest

from study.theory import Layer, measure_layer, predict, predicted_exponent
from study.theory.curves import stable_rank

from .lazy_layer import gaussian, polar, seed_slopes

RANKS = (4, 8, 16, 32)
D_IN, D_OUT, SEEDS = 160, 60, 20


def gradient():
    """A [O, D] weight gradient with one direction above 29 others."""
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.standard_normal((size, 30)))[0] for size in (D_OUT, D_IN))
    return U * np.sqrt([0.4, *[0.6 / 29] * 29]) @ V.T


def predicted(ranks, **setting):
    return predicted_exponent("delta_w", "stable_rank", ranks, **{"step": 1, "p": 0.5} | setting)


@pytest.mark.parametrize(
    ("optimizer", "update"), [("sgd", lambda grad: grad), ("muon", polar)], ids=["sgd", "muon"]
)
def test_size_and_slope_after_one_step(optimizer, update):
    G = gradient()
    layer = measure_layer(G, np.ones((1, D_IN)), np.ones((1, D_OUT)), kurtosis=0.0)
    kind = predict("delta_w", "stable_rank", step=1, optimizer=optimizer, p=0.5).family
    measured = np.empty((len(RANKS), SEEDS))
    for n, rank in enumerate(RANKS):
        A = gaussian(np.random.default_rng(rank), (SEEDS, rank, D_IN), D_IN)
        s = np.linalg.svd(update(G @ A.mT) @ A, compute_uv=False)
        measured[n] = np.square(s).sum(1) / np.square(s[:, 0])
    sizes = stable_rank(np.array(RANKS, float), kind, layer, "A")
    np.testing.assert_allclose(sizes[:3], measured.mean(1)[:3], rtol=0.1)
    slope = predicted(
        RANKS, optimizer=optimizer, layer=Layer(D_IN, D_OUT, r_eff=layer.r_eff, g_rank=32)
    )
    assert slope == pytest.approx(seed_slopes(measured, RANKS).mean(), abs=0.06)


def test_it_depends_on_no_rule_and_is_transposed_under_init_b():
    ranks = np.array([4.0, 64.0])
    wide, high = Layer(900, 100, g_rank=64), Layer(100, 900, g_rank=64)
    for init, layer in (("A", wide), ("B", high)):
        np.testing.assert_allclose(
            stable_rank(ranks, "spectral", layer, init), [3.6, 40.5], rtol=0.03
        )
    by_rule = [
        predicted((4, 8, 16), optimizer="sgd", p=p, layer=Layer(r_eff=9.0)) for p in (0.0, 0.5, 1.0)
    ]
    # A share of 1/3: from 2 at rank 4 to 8/3 at rank 16.
    assert by_rule == pytest.approx([math.log(4 / 3) / math.log(4)] * 3)


def test_no_prediction_under_a_sign_like_rule_above_the_gradients_rank_and_at_other_sites():
    for optimizer in ("adamw", "muon"):
        layer = Layer(900, 100, g_rank=8, r_eff=4.0)
        assert math.isnan(predicted(RANKS, optimizer=optimizer, layer=layer))
    assert predict("B_grad", "stable_rank", step=1, optimizer="sgd", p=0.5).exponent is None
