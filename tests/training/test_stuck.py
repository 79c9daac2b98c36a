"""A run is stuck if its gradient and its held-out loss have died; healthy runs never are."""

import math
from collections.abc import Callable, Iterable, Mapping

import pytest

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.training.loop import train
from study.training.run import Run
from study.training.stuck import StuckCheck
from study.vocabulary.thresholds import STUCK_GRADIENT, STUCK_LOSS

Build = Callable[..., CellConfig]


def stuck_step(rows: Iterable[Mapping[str, float]]) -> int | None:
    check = StuckCheck()
    for row in rows:
        check.add(row)
    return check.step


def rows(norms: Iterable[float], losses: Iterable[float], **heldout: float) -> list[dict]:
    """Rows of steps 0, 1, ...; ``heldout`` by step, as ``s3=2.0``."""
    return [
        {
            "step": step,
            "grad_norm": norm,
            "loss": loss,
            "eval_loss": heldout.get(f"s{step}", math.nan),
        }
        for step, (norm, loss) in enumerate(zip(norms, losses, strict=True))
    ]


def trained(base: FrozenBase, corpus: Corpus, config: CellConfig) -> list[dict[str, float]]:
    """The rows of ``metrics`` of one cell."""
    steps = train(base, corpus, [Run.of(config, corpus, base.device)])
    return [result.metrics for (result,) in steps if result is not None]


@pytest.mark.parametrize(
    "too_large",
    [["optimizer=sgd", "optimizer.lr=1e4"], ["optimizer=adamw", "optimizer.lr=1e4"]],
    ids=["sgd", "adamw"],
)
def test_a_run_of_a_far_too_large_rate_is_stuck(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build, too_large: list[str]
) -> None:
    """All losses are finite, the last one is below the first, and no gradient is left."""
    found = trained(tiny_base, corpus, cell(*too_large, "train.steps=6", "train.eval_every=2"))
    assert all(math.isfinite(row["loss"]) for row in found if "loss" in row)
    assert found[-1]["eval_loss"] < found[0]["eval_loss"]
    first_dead = next(row["step"] for row in found if row.get("grad_norm") == 0)
    assert stuck_step(found) == first_dead


@pytest.mark.parametrize(
    "healthy",
    [
        ["optimizer=sgd", "optimizer.lr=1e-12", "train.eval_every=1"],
        ["train.warmup=6", "optimizer.lr=1e-2", "train.eval_every=1"],
        ["optimizer=sgd", "optimizer.lr=0.1"],
        ["optimizer=adamw", "optimizer.lr=1e-2"],
    ],
    ids=["tiny rate: the loss is constant to rounding", "warm-up from 0", "sgd", "adamw"],
)
def test_a_healthy_run_is_not_stuck(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build, healthy: list[str]
) -> None:
    found = trained(tiny_base, corpus, cell(*healthy, "train.steps=6"))
    assert stuck_step(found) is None
    assert all(stuck_step(found[:end]) is None for end in range(len(found)))


def test_a_gradient_may_be_negligible_without_being_zero() -> None:
    """Outputs of 1e12 leave gradients of 1e-12: an update is lost in the rounding of weights."""
    norms, losses = [1.0, 40.0, 1e-12, 1e-12, 1e-12], [6.0, 5.9, 5.5, 5.5, 5.5]
    assert stuck_step(rows(norms, losses)) == 2
    assert stuck_step(rows(norms, losses, s2=5.6, s4=5.6 * (1 + STUCK_LOSS / 2))) == 2
    assert stuck_step(rows(norms, losses, s2=5.6, s4=5.6 * (1 + 2 * STUCK_LOSS))) is None
    above = [1.0, 40.0, *[2 * STUCK_GRADIENT] * 3]
    assert stuck_step(rows(above, losses)) is None


def test_only_the_end_of_a_run_counts() -> None:
    """Weight decay or momentum can bring a run back. One zero is not enough."""
    losses = [5.0] * 6
    assert stuck_step(rows([1, 0, 0, 0, 1, 1], losses)) is None
    assert stuck_step(rows([1, 0, 0, 1, 0, 0], losses)) == 4
    assert stuck_step(rows([1, 1, 1, 1, 1, 0], losses)) is None
    assert stuck_step(rows([0, 0, 0, 0, 0, 0], losses)) == 0
