"""The crossover of the best rate's exponent, against sign descent of one layer in numpy."""

import math

import numpy as np
import pytest

from study.analysis.rate_theory import K, rate_exponent

D, O = 64, 16  # noqa: E741


def trained(
    rank: int, L: float, inputs: int, seed: int, steps: int = 8
) -> tuple[float, float, float]:
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


def test_the_output_of_one_input() -> None:
    """L M(r) (1 + k rho), by a fresh draw: ``||A0 x||_1`` is near its mean at a high rank.

    In the first step B is 0 and A does not move, so A makes 15 of 16 steps.
    """
    for L in (1e-4, 1e-2, 1.0):
        out, rho, _ = trained(4096, L, 1, seed=1, steps=16)
        rest, *_ = trained(4096, 1e-6, 1, seed=1, steps=16)
        assert out / L == pytest.approx(rest / 1e-6 * (1 + K * rho), rel=0.03), L


def best_rate(rank: int, move: float, seeds: int = 6) -> tuple[float, float]:
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
def test_the_exponent_of_the_rate_that_moves_the_output_by_the_same_amount(move: float) -> None:
    low, high = (best_rate(rank, move) for rank in (64, 256))
    slope = (high[0] - low[0]) / math.log(4)
    rho = math.sqrt(low[1] * high[1])
    print(f"rho {rho:.3g}: {slope:.3f}, predicted {rate_exponent(1.0, rho):.3f}")
    assert slope == pytest.approx(rate_exponent(1.0, rho), abs=0.03)


def test_of_many_inputs_the_output_bends_and_the_descent_does_not() -> None:
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
