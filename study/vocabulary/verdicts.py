"""The words of the verdicts: what the slope of a quantity against rank was shown to be."""

from dataclasses import dataclass
from typing import Literal

Colour = Literal["green", "red", "yellow", "grey"]
"""``green``: shown to be stable. ``red``: shown to be beyond the margin. ``yellow``: not decided,
or a slope of unknown size. ``grey``: not tested."""


@dataclass(frozen=True)
class Verdict:
    """One word.

    - ``predicate``: the word in a sentence about a quantity ("the gradient norm ... collapses");
    - ``meaning``: a sentence for a legend. ``{factor}`` is the ratio that the margin stands for;
    - ``beyond``: whether the word says that the change is larger than the margin;
    - ``symbol``: one character for a crowded table. ``colour``: of the word, on a terminal and on
      a page.
    """

    predicate: str
    meaning: str
    symbol: str
    colour: Colour
    beyond: bool = False


VERDICTS: dict[str, Verdict] = {
    "stable": Verdict(
        "is stable", "shown to change by less than a factor of {factor:g}", "=", "green"
    ),
    "collapses": Verdict(
        "collapses", "shown to fall by more than a factor of {factor:g}", "↓", "red", beyond=True
    ),
    "explodes": Verdict(
        "explodes", "shown to rise by more than a factor of {factor:g}", "↑", "red", beyond=True
    ),
    "falls": Verdict("falls", "shown to fall; the size is not decided", "↘", "yellow"),
    "rises": Verdict("rises", "shown to rise; the size is not decided", "↗", "yellow"),
    "unclear": Verdict("is unclear", "none of these was shown", "?", "yellow"),
    "one seed": Verdict("was measured with one seed", "one seed gives no verdict", "–", "grey"),
}
STABLE, COLLAPSES, EXPLODES, FALLS, RISES, UNCLEAR, ONE_SEED = VERDICTS


AGREEMENTS: dict[str, Verdict] = {
    "agrees": Verdict(
        "agrees",
        "shown to be within theory, up to a factor of {factor:g} over the ranks",
        "=",
        "green",
    ),
    "differs": Verdict(
        "differs", "shown to be further from theory than that", "≠", "red", beyond=True
    ),
    UNCLEAR: VERDICTS[UNCLEAR],
    ONE_SEED: VERDICTS[ONE_SEED],
}
"""The words for a measured exponent beside a predicted interval."""
AGREES, DIFFERS = list(AGREEMENTS)[:2]


def meaning(word: str, factor: float) -> str:
    """The sentence of a legend, for a margin that stands for the ratio ``factor``."""
    return (VERDICTS | AGREEMENTS)[word].meaning.format(factor=factor)
