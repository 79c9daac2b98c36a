"""The questions of studies: the keys that vary in a study decide which one it asks."""

from collections.abc import Collection
from typing import Literal, NamedTuple


class Question(NamedTuple):
    """A question, and the view that answers it.

    - ``varies``: columns of ``cells``. A study that varies one of them asks this question. ``*`` is
      any other column;
    - ``kind``: its sentences and its table (:mod:`study.report.answer`);
    - ``figures``: the first one that the study has data for is shown.
    """

    asks: str
    varies: tuple[str, ...]
    kind: Literal["rounding", "capacity", "rates", "sizes"]
    figures: tuple[str, ...]


FORMS, ROUNDED = ("precision", "contraction"), ("loss_in_bf16", "lost_in_bf16")
BASINS = ("loss_against_alpha", "learning_rate_basins", "rate_exponent_vs_rho")
SIZES = ("exponents_over_training", "conditions", "grad_norm_vs_rank", "descent_vs_rank")
LIMIT, LOSSES = "distance_to_infinite_rank", ("truncated_losses", "loss_curves")
RANK = " as the rank grows?"
QUESTIONS = (
    Question("What does rounding to bf16 take from the adapter?", FORMS, "rounding", ROUNDED),
    Question(
        "How many bits does an adapter store?", ("max_samples",), "capacity", ("bits_stored",)
    ),
    Question("Which learning rate is best at which rank?", ("lr", "alpha"), "rates", BASINS),
    Question(f"What does the optimizer change{RANK}", ("optimizer", "betas"), "sizes", SIZES),
    Question(f"What does the number of steps change{RANK}", ("steps",), "sizes", SIZES),
    Question(
        f"What does the setting change{RANK}", ("*",), "sizes", ("exponents_by_setting", *SIZES)
    ),
    Question(
        f"Do outputs and gradients keep their size{RANK}", (), "sizes", (LIMIT, *SIZES, *LOSSES)
    ),
)
"""In this order: a study asks the first one whose columns vary and that it has the data for."""


def questions_of(varying: Collection[str]) -> list[Question]:
    """The questions of a study in which these columns vary, beside ranks, rules and seeds."""
    found = {*varying, "*"} if varying else set()
    return [one for one in QUESTIONS if not one.varies or found & {*one.varies}]
