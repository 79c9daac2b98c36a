"""Finite-rank curves: every constant of ``r (r - 1 + rho)``, against Monte Carlo."""

import math

import numpy as np
import pytest

from study.theory import (
    Layer,
    crossover,
    curve,
    distance_to_infinite_rank,
    mean_log_curve,
    move,
    predict,
    slope,
    stable_exponent,
)
from tests.theory.measured_layer import measure_layer

from .lazy_layer import D_IN, gaussian, interval, kaiming, problem, sgd, signsgd, sweep

RANKS = (2, 8, 32, 128)
LR = 1e-9
SITES = ("adapter_out", "delta_w", "adapter_in_grad")


def expected_squares(setting, init, kurtosis, kind):
    """E|.|^2 of each product site at each rank after one step at gamma = 1, with its constants."""
    (x, g), G = setting.batch(0), setting.gradient(0)
    layer = measure_layer(G, x, g, init, kurtosis)
    if init == "B":
        x, g, G = g, x, G.T
    v = 1 / (3 * G.shape[1])
    rows = np.linalg.norm(G, axis=1, keepdims=True)
    mean = v * G if kind == "sgd" else np.sqrt(2 * v / np.pi) * G / rows
    ends = {"aligned": x @ mean.T, "weight": mean, "crossed": g @ mean}
    terms = ("aligned", "weight", "crossed") if init == "A" else ("crossed", "weight", "aligned")
    r = np.array(RANKS, dtype=float)
    return {
        site: LR**2 * r * (r - 1 + crossover(term, kind, layer, init)) * np.square(ends[term]).sum()
        for site, term in zip(SITES, terms, strict=True)
    }


@pytest.mark.parametrize(("tokens", "init"), [(1, "A"), (12, "A"), (12, "B")])
@pytest.mark.parametrize(
    ("rule", "kind", "draw", "kurtosis", "slack"),
    [
        (sgd, "sgd", kaiming, -1.2, 0.0),
        (signsgd, "sign", gaussian, 0.0, 0.0),
        (signsgd, "sign", kaiming, -1.2, 0.02),  # PEFT's uniform init: near the Gaussian form
    ],
)
def test_second_moments_at_every_rank(rule, kind, draw, kurtosis, slack, init, tokens):
    setting = problem(3, tokens=tokens)
    training = {"p": 0, "seeds": 1000, "seed": 1, "init": init, "draw": draw, "lr": LR, "steps": 1}
    measured = sweep(rule, setting, RANKS, **training)[1]
    for site, squares in expected_squares(setting, init, kurtosis, kind).items():
        for rank, samples, square in zip(RANKS, measured[site] ** 2, squares, strict=True):
            ratio = interval(samples / square, comparisons=150)
            off = abs(ratio.value - 1)
            assert off <= ratio.half + slack, f"{site} at rank {rank}: {ratio} of the expected"


LAYER = Layer(d_in=576, d_out=1536, r_align=5.0, r_sign=6.0)
WIDE = 2.0 ** np.arange(2, 40)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("init", ["A", "B"])
def test_curves_join_their_asymptotes_and_are_half_below_in_the_noise(optimizer, init):
    for site in SITES:
        setting = {"step": 1, "optimizer": optimizer, "p": 0.4, "q": 0.2, "init": init}
        values = curve(site, "norm", WIDE, layer=LAYER, **setting)
        asymptote = predict(site, "norm", **setting).exponent
        assert slope(values[-2:], WIDE[-2:]) == pytest.approx(asymptote, abs=1e-6)
        huge = Layer(d_in=1e30, d_out=1e30, r_align=1e30, r_sign=1e30)
        assert slope(curve(site, "norm", WIDE, layer=huge, **setting), WIDE) == pytest.approx(
            asymptote - 1 / 2
        )


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 2), ("adamw", 1)])
def test_slopes_are_linear_in_p_so_that_one_p_gives_the_stable_one(optimizer, factor):
    ranks = (4, 8, 16, 32, 64, 128, 256)
    law = {"step": 1, "optimizer": optimizer, "layer": LAYER}
    stars = {}
    for site in SITES:
        slopes = [slope(curve(site, "rms", ranks, p=p, **law), ranks) for p in (0.0, 0.5, 1.0)]
        assert slopes[0] - slopes[1] == pytest.approx(factor / 2)
        assert slopes[0] - slopes[2] == pytest.approx(factor)
        stars[site] = stable_exponent(site, "rms", ranks=ranks, **law)
        flat = mean_log_curve(site, "rms", ranks, p=stars[site], **law)
        assert slope(flat, ranks) == pytest.approx(0, abs=1e-12)
    # The backward condition is flat near 1/4 and 1/2 on ranks up to D.
    assert stars["adapter_in_grad"] == pytest.approx({2: 1 / 4, 1: 1 / 2}[factor], abs=0.04)


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor"])
def test_a_curve_that_depends_on_an_unknown_property_is_nan(optimizer):
    law = {"step": 1, "optimizer": optimizer, "p": 0, "layer": Layer(8, 8)}
    assert np.isnan(curve("adapter_out", "rms", (4, 8), **law)).all()
    assert np.isfinite(curve("delta_w", "rms", (4, 8), **law)).all()


@pytest.mark.parametrize("large", [(0.5,), (0.65,), (0.4, 0.4), (0.3, 0.2, 0.2)], ids=str)
def test_a_uniform_A_and_rows_that_read_few_inputs(large):
    """The squared length of the mean of sign(G_o a) a, by Monte Carlo over 800,000 a.

    ``large``: shares of |G_o|^2 on single inputs; the rest is spread over 40 of them.
    """
    row = np.sqrt([*large, *[(1 - sum(large)) / 40] * 40])
    rng = np.random.default_rng(0)
    total = np.zeros(len(row))
    for _ in range(40):
        a = math.sqrt(3) * rng.uniform(-1, 1, (20_000, len(row)))
        total += np.sign(a @ row) @ a
    exact = np.square(total / 800_000).sum() / (2 / math.pi)
    layer = measure_layer(np.tile(row, (3, 1)), np.eye(len(row)), np.ones((5, 3)))
    assert layer.r_rows == pytest.approx(1 / np.sum(row**4))
    assert exact > 1.015, "a Gaussian A would have 1"
    assert layer.sharpness == pytest.approx(exact, rel=0.02)
    assert crossover("weight", "sign", layer) == math.pi / 2 * len(row) / layer.sharpness
    assert measure_layer(row[None], np.eye(len(row)), np.ones((5, 1)), kurtosis=0.0).sharpness == 1


@pytest.mark.parametrize("kind", ["linear", "sign"])
@pytest.mark.parametrize("init", ["A", "B"])
@pytest.mark.parametrize("weighting", ["frobenius", "inputs"])
def test_distance_to_infinite_rank(init, weighting, kind):
    """E|delta_w - limit|^2 / |limit|^2 after one step, by Monte Carlo.

    At gamma = r^(-1/2) under SGD; at gamma = 1/r under a sign-like rule, for a Gaussian init, whose
    mean over draws is known.
    """
    setting, rank, rng = problem(3, tokens=12), 64, np.random.default_rng(0)
    (x, g), G = setting.batch(0), setting.gradient(0)
    kurtosis = -1.2 if kind == "linear" else 0.0
    layer = measure_layer(G, x, g, init, kurtosis=kurtosis)
    # Init[B] is Init[A] of the transposed problem.
    W = G if init == "A" else G.T
    A = kaiming(rng, (1000, rank, W.shape[1]), W.shape[1])
    if kind == "sign":
        A = rng.standard_normal(A.shape)
    first = W @ A.mT if kind == "linear" else np.sign(W @ A.mT)
    delta = first @ A / rank
    limit = W / (3 * W.shape[1])
    if kind == "sign":
        limit = math.sqrt(2 / math.pi) * W / np.linalg.norm(W, axis=1, keepdims=True)
    error, limit = (delta - limit, limit) if init == "A" else ((delta - limit).mT, limit.T)
    weigh = x.T if weighting == "inputs" else np.eye(D_IN)
    squares = np.square(error @ weigh).sum((1, 2)) / np.square(limit @ weigh).sum()
    told = distance_to_infinite_rank(rank, layer, weighting=weighting, kind=kind, init=init)
    assert interval(squares / told**2, comparisons=8).agrees(1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "signsgd"])
def test_a_move_is_the_output_of_the_curve_at_its_gamma(optimizer):
    """At rank 8 of LoRA and rank 64 of rsLoRA, as exponents of the rank."""
    for rank, p in ((8, 1.0), (64, 0.5)):
        [size] = curve("adapter_out", "rms", [rank], step=1, optimizer=optimizer, p=p, layer=LAYER)
        assert move(rank, rank**-p, optimizer, LAYER) == pytest.approx(size)
