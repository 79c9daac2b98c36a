"""A Monte Carlo of one adapted linear layer, in numpy, without any prediction.

Arrays have a leading S (seeds): A [S, R, D], B [S, O, R]. The gradient with respect to the layer's
output is ``g + curvature * adapter_out``: constant, or that of a quadratic loss. There is a random
batch per step, or one for all steps.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

D_IN, D_OUT, TOKENS = 24, 20, 6
Step = Callable[[np.ndarray, "State"], np.ndarray]


@dataclass
class State:
    """One parameter's optimizer state; ``t`` counts updates, from 1."""

    t: int = 0
    first: np.ndarray | float = 0.0
    second: np.ndarray | float = 0.0


def sgd(grad, state):
    return -grad


def momentum(grad, state):
    state.first = 0.9 * state.first + grad
    return -state.first


def signsgd(grad, state):
    return -np.sign(grad)


def adam(grad, state, eps=1e-300):
    state.first = 0.9 * state.first + 0.1 * grad
    state.second = 0.999 * state.second + 0.001 * grad**2
    mean, square = state.first / (1 - 0.9**state.t), state.second / (1 - 0.999**state.t)
    return -mean / (np.sqrt(square) + eps)


def adam_under_eps(grad, state):
    return adam(grad, state, eps=1e6)


def lion(grad, state):
    update = -np.sign(0.9 * state.first + 0.1 * grad)
    state.first = 0.99 * state.first + 0.01 * grad
    return update


def rmsprop(grad, state):
    state.second = 0.99 * state.second + 0.01 * grad**2
    return -grad / (np.sqrt(state.second) + 1e-300)


def adafactor(grad, state):
    """Factored second moment, update clipped to rms 1; torch's without parameter scaling."""
    keep = 1 - state.t**-0.8
    rows, columns = state.first, state.second
    state.first = rows = keep * rows + (1 - keep) * np.square(grad).mean(2, keepdims=True)
    state.second = columns = keep * columns + (1 - keep) * np.square(grad).mean(1, keepdims=True)
    square = rows * columns / (rows.mean(1, keepdims=True) + 1e-300)
    update = np.where(grad == 0, 0.0, grad / np.sqrt(square + 1e-300))
    return -update / np.maximum(1.0, np.sqrt(np.square(update).mean((1, 2), keepdims=True)))


def polar(matrices):
    """``U V^T`` of the singular value decomposition, over the nonzero singular values."""
    U, s, V = np.linalg.svd(matrices, full_matrices=False)
    kept = s > 1e-9 * s[..., :1]
    return (U * kept[..., None, :]) @ V


def muon(grad, state, adjust="none"):
    """torch's Muon with exact orthogonalisation."""
    state.first = 0.95 * state.first + 0.05 * grad
    rows, columns = grad.shape[-2:]
    factor = {
        "none": 1.0,
        "original": max(1.0, rows / columns) ** 0.5,
        "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
    }[adjust]
    return -factor * polar(0.05 * grad + 0.95 * state.first)


@dataclass
class Problem:
    """Batches (x [N, D], g [N, O]), one per step; the last one is repeated."""

    batches: list[tuple[np.ndarray, np.ndarray]]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batches[min(step, len(self.batches) - 1)]

    def gradient(self, step: int) -> np.ndarray:
        x, g = self.batch(step)
        return g.T @ x


def problem(
    seed: int, batches: int = 1, tokens: int = TOKENS, d_in: int = D_IN, d_out: int = D_OUT
) -> Problem:
    """Tokens that share a direction, as real ones do, so that alignments are neither 1 nor D."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(d_in), rng.standard_normal(d_out)

    def tilted(shared: np.ndarray) -> np.ndarray:
        along = 0.7 * shared * rng.standard_normal((tokens, 1))
        return along + rng.standard_normal((tokens, len(shared)))

    return Problem([(tilted(shared[0]), tilted(shared[1]) / tokens) for _ in range(batches)])


def kaiming(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """PEFT's init: kaiming_uniform_(a=sqrt(5)), the bound 1/sqrt(fan_in), variance 1/(3 fan_in)."""
    return rng.uniform(-1, 1, shape) / np.sqrt(fan_in)


def gaussian(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    return rng.standard_normal(shape) / np.sqrt(3 * fan_in)


def train(
    rule: Step,
    setting: Problem,
    A: np.ndarray,
    B: np.ndarray,
    gamma: float,
    *,
    lr: float = 1e-9,
    lr_ratio: float = 1.0,
    steps: int = 3,
    clip: float = np.inf,
    curvature: float = 0.0,
    decoupled: float = 0.0,
    coupled: float = 0.0,
) -> Iterator[dict[str, np.ndarray]]:
    """Rows 0 to ``steps``: the array of every site, [S, ...], as probed, and ``descent``, [S]."""
    states = State(), State()
    for step in range(steps + 1):
        x, g = setting.batch(step)
        adapter_out = gamma * (x @ A.mT @ B.mT)
        dy = g + curvature * adapter_out / len(x)
        G = dy.mT @ x
        grads = gamma * (B.mT @ G), gamma * (G @ A.mT)
        norm = np.sqrt(sum(np.square(grad).sum((1, 2), keepdims=True) for grad in grads))
        scale = np.minimum(1.0, clip / norm)
        updates = []
        for parameter, grad, state, rate in zip(
            (A, B), grads, states, (lr, lr * lr_ratio), strict=True
        ):
            state.t += 1
            update = rule(scale * grad + coupled * parameter, state) - decoupled * parameter
            updates.append(np.broadcast_to(rate * update, parameter.shape))
        yield {
            "adapter_in": x[None],
            "adapter_out": adapter_out,
            "layer_out": 1.0 + adapter_out,  # a base whose every output is 1
            "layer_out_grad": np.broadcast_to(dy, adapter_out.shape),
            "adapter_in_grad": gamma * (dy @ B @ A),
            "delta_w": gamma * (B @ A),
            "A": A,
            "B": B,
            "A_grad": np.broadcast_to(grads[0], A.shape),
            "B_grad": np.broadcast_to(grads[1], B.shape),
            "A_update": updates[0],
            "B_update": updates[1],
            "adapter_grad": _both(*grads),
            "adapter_update": _both(*updates),
            "descent": -sum((g * u).sum((1, 2)) for g, u in zip(grads, updates, strict=True)),
        }
        A, B = A + updates[0], B + updates[1]


def _both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate([a.reshape(len(a), -1), b.reshape(len(b), -1)], axis=1)


def named(site: str, init: str) -> str:
    """The site that plays the role of ``site`` under ``init``: Init[B] is Init[A] transposed."""
    products = ["adapter_out", "adapter_in_grad"]
    if init == "A":
        return site
    if site in products:
        return products[1 - products.index(site)]
    return site.translate(str.maketrans("AB", "BA"))


def statistic(stat: str, array: np.ndarray) -> np.ndarray:
    """One number per seed, [S], from an array [S, ...]; ``descent`` is [S] already."""
    if array.ndim == 1:
        return array
    flat = np.abs(array.reshape(len(array), -1))
    if stat == "mean_abs":
        return flat.mean(1)
    power = {"norm": 2, "rms": 2, "m4": 4}[stat]
    total = (flat**power).sum(1) if stat == "norm" else (flat**power).mean(1)
    return total ** (1 / power)


def sweep(
    rule: Step,
    setting: Problem,
    ranks: tuple[int, ...],
    *,
    p: float,
    q: float = 0.0,
    seeds: int = 24,
    seed: int = 0,
    init: str = "A",
    draw=kaiming,
    stat: str | tuple[str, ...] = "norm",
    **training,
) -> list[dict]:
    """Per step ``{site: [ranks, S]}``, with fresh draws at every rank.

    For several stats: ``{(site, stat): [ranks, S]}``.
    """
    x, g = setting.batch(0)
    d_in, d_out = x.shape[1], g.shape[1]
    names = (stat,) if isinstance(stat, str) else stat
    rows: dict[int, dict] = defaultdict(dict)
    for rank in ranks:
        rng = np.random.default_rng([seed, rank])
        # Few seeds at a time, so that arrays stay in the cache.
        block = max(1, 2**16 // (rank * (d_in + d_out)))
        for first in range(0, seeds, block):
            count = min(block, seeds - first)
            A, B = np.zeros((count, rank, d_in)), np.zeros((count, d_out, rank))
            if init == "A":
                A = draw(rng, A.shape, d_in) * rank ** (-q / 2)
            else:
                B = draw(rng, B.shape, d_out) * rank ** (-q / 2)
            for step, arrays in enumerate(train(rule, setting, A, B, rank**-p, **training)):
                for site, array in arrays.items():
                    for name in names:
                        key = site if isinstance(stat, str) else (site, name)
                        values = np.broadcast_to(statistic(name, array), count)
                        rows[step].setdefault(key, {}).setdefault(rank, []).append(values)
    return [
        {key: np.array([*map(np.concatenate, by_rank.values())]) for key, by_rank in row.items()}
        for row in rows.values()
    ]


@dataclass(frozen=True)
class Measured:
    """A mean over seeds and the half-width of its t-interval."""

    value: float
    half: float

    def agrees(self, predicted: float) -> bool:
        return abs(self.value - predicted) <= self.half

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.half:.4f}"


def interval(samples: np.ndarray, comparisons: int = 1, error: float = 0.01) -> Measured:
    """The interval of samples, one per seed; all ``comparisons`` share ``error`` (Bonferroni).

    0.001 is added: a quantity without spread, such as an update of fixed size, is exact only to
    first order in the learning rate and the decay.
    """
    count = len(samples)
    t = stats.t.ppf(1 - error / (2 * comparisons), count - 1)
    return Measured(float(samples.mean()), float(t * samples.std(ddof=1) / np.sqrt(count)) + 1e-3)


def seed_slopes(values: np.ndarray, ranks: tuple[int, ...]) -> np.ndarray:
    """[ranks, S] -> each seed's own log-log slope, [S]."""
    x = np.log(ranks) - np.mean(np.log(ranks))
    return x @ np.log(values) / (x @ x)
