"""A run is stuck if its gradient and its held-out loss have died; healthy runs never are."""

import math

import pytest

from study.training.stuck import StuckCheck
from study.vocabulary.thresholds import STUCK_GRADIENT, STUCK_LOSS
from tests.trained import trained


def stuck_step(rows):
    check = StuckCheck()
    for row in rows:
        check.add(row)
    return check.step


def rows(norms, losses, heldout=None):
    """Rows of steps 0, 1, ...; ``heldout`` by step."""
    held = heldout or {}
    return [
        {"step": step, "grad_norm": norm, "loss": loss, "eval_loss": held.get(step, math.nan)}
        for step, (norm, loss) in enumerate(zip(norms, losses, strict=True))
    ]


HEALTHY = {
    "tiny rate: the loss is constant to rounding": ["optimizer=sgd", "optimizer.lr=1e-12"],
    "warm-up from 0": ["train.warmup=6", "optimizer.lr=1e-2"],
    "adamw": ["optimizer=adamw", "optimizer.lr=1e-2"],
}


def test_a_healthy_run_is_not_stuck(tiny_base, corpus, cell):
    fold = [cell(*own, "train.steps=6", "train.eval_every=1") for own in HEALTHY.values()]
    for kind, steps in zip(HEALTHY, trained(tiny_base, corpus, *fold), strict=True):
        found = [step.metrics for step in steps]
        assert all(stuck_step(found[:end]) is None for end in range(len(found) + 1)), kind


def test_a_gradient_may_be_negligible_without_being_zero():
    """Outputs of 1e12 leave gradients of 1e-12: an update is lost in the rounding of weights."""
    norms, losses = [1.0, 40.0, 1e-12, 1e-12, 1e-12], [6.0, 5.9, 5.5, 5.5, 5.5]
    assert stuck_step(rows(norms, losses)) == 2
    for change, step in ((STUCK_LOSS / 2, 2), (2 * STUCK_LOSS, None)):
        assert stuck_step(rows(norms, losses, {2: 5.6, 4: 5.6 * (1 + change)})) == step
    above = [1.0, 40.0, *[2 * STUCK_GRADIENT] * 3]
    assert stuck_step(rows(above, losses)) is None


@pytest.mark.parametrize(
    ("norms", "step"), [("100011", None), ("100100", 4), ("111110", None), ("000000", 0)]
)
def test_only_the_end_of_a_run_counts(norms, step):
    """Weight decay or momentum can bring a run back. One zero is not enough."""
    assert stuck_step(rows(map(float, norms), [5.0] * 6)) == step
