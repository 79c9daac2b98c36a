"""r_sign of an accumulated update (docs/best-rates.md), by simulation."""

import numpy as np
import pytest

D, OUT, PARTS = 64, 16, 400
SIZES = np.arange(1, D + 1) ** -0.5
"""Of inputs and of the signal, by direction."""


def of_signs(G_TD, x):
    """The formula: r_sign of an output after sign-like steps with these gradients, A frozen."""
    g = G_TD / np.linalg.norm(G_TD, axis=1, keepdims=True)
    c, k = np.clip(g @ g.T, -1, 1), g @ (x / np.linalg.norm(x))
    apart = 1 - np.eye(len(c))
    second = (2 * np.outer(k, k) - c * (k[:, None] ** 2 + k**2)) / np.sqrt(1 - c**2 + 1 - apart)
    return float((np.arcsin(c) + second * apart).sum() / k.sum() ** 2)


@pytest.mark.parametrize("steps", [1, 16, 64])
def test_the_output_of_many_noisy_steps_is_that_of_one_with_its_own_r_sign(steps):
    rng, sizes = np.random.default_rng(0), []
    signal = SIZES * rng.standard_normal(D)
    G, x = signal + 2 * SIZES * rng.standard_normal((steps, D)), signal + SIZES
    for rank in (1, 8, 64):
        a = rng.standard_normal((60_000 // rank, rank, D))
        out = (np.sign(a @ G.T).sum(-1) * (a @ x)).sum(-1)
        sizes.append(np.mean(out**2) / (rank * (rank - 1 + of_signs(G, x))))
    assert np.array(sizes) / sizes[0] == pytest.approx(1, abs=0.06)


def trained(rate, steps=200, frozen=False):
    """r_sign of what Adam accumulates in components that share their gradients, and the loss, both
    on fresh inputs. It is a noisy regression on a cosine. ``frozen``: A, and the gradients' law."""
    rng, learns = np.random.default_rng(0), 0.0 if frozen else 30.0
    A, B = rng.standard_normal((PARTS, D)) / np.sqrt(D), np.zeros((PARTS, OUT))
    state = [np.zeros_like(part) for part in (B, B, A, A)]
    fresh = SIZES * rng.standard_normal((200, D))
    for t in range(1, steps + 1):
        x, noise = SIZES * rng.standard_normal((8, D)), rng.standard_normal((8, OUT))
        error = learns * (x @ A.T) @ B / PARTS - x[:, :OUT] * SIZES[:OUT] + noise
        eta = rate * (1 + np.cos(np.pi * (t - 1) / steps)) / 2
        grads = A @ x.T @ error, B @ error.T @ x
        for factor, grad, (m, v) in zip((B, A), grads, (state[:2], state[2:]), strict=True):
            m[:], v[:] = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
            step = eta * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-12)
            factor -= step * (factor is B or not frozen)
    h = fresh @ A.T
    out = h @ B / PARTS
    each, mean = np.mean(np.sum(h**2, 0) * np.sum(B**2, 1)), np.sum(out**2)
    loss = np.mean((learns * out - fresh[:, :OUT] * SIZES[:OUT]) ** 2)
    return float(each / (mean - (each - mean) / (PARTS - 1))), float(loss)


def test_noise_does_not_raise_r_sign_but_rates_above_the_best_do():
    falling = [trained(1e-4, steps, frozen=True)[0] for steps in (1, 16, 200)]
    assert falling == pytest.approx([32, 18, 9], rel=0.1)
    runs = [trained(1e-4 * 4**k) for k in range(6)]
    best = min(range(6), key=lambda k: runs[k][1])
    assert (runs[best][0], runs[best + 2][0]) == pytest.approx((6, 29), rel=0.1)
