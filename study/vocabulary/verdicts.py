"""The verdicts on the slope of a quantity against rank; the glossary of tables and pages."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from study.vocabulary.quantities import SITES, STATS
from study.vocabulary.thresholds import CONFIDENCE, STABLE_RATIO

Colour = Literal["green", "red", "yellow", "grey"]
"""``green``: shown to be stable. ``red``: shown to be beyond the margin. ``yellow``: not decided,
or a slope of unknown size. ``grey``: not tested."""


@dataclass(frozen=True)
class Verdict:
    """- ``predicate``: the word in a sentence about a quantity ("the gradient norm ... collapses");
    - ``meaning``: a sentence for a legend. ``{factor}`` is the ratio of the margin;
    - ``beyond``: whether the word says that the change is larger than the margin.
    """

    predicate: str
    meaning: str
    symbol: str
    colour: Colour
    beyond: bool = False


UNKNOWN_SIZE = "we cannot tell whether by more than {factor:g} times"

VERDICTS: dict[str, Verdict] = {
    "stable": Verdict("is stable", "changes by less than {factor:g} times", "=", "green"),
    "collapses": Verdict("collapses", "falls by more than {factor:g} times", "↓", "red", True),
    "explodes": Verdict("explodes", "grows by more than {factor:g} times", "↑", "red", True),
    "falls": Verdict("falls", f"falls; {UNKNOWN_SIZE}", "↘", "yellow"),
    "rises": Verdict("rises", f"grows; {UNKNOWN_SIZE}", "↗", "yellow"),
    "unclear": Verdict("is unclear", "these seeds cannot tell", "?", "yellow"),
    "one seed": Verdict("was measured with one seed", "one seed gives no verdict", "–", "grey"),
}
STABLE, COLLAPSES, EXPLODES, FALLS, RISES, UNCLEAR, ONE_SEED = VERDICTS


AGREES, DIFFERS = "agrees", "differs"
"""The words for a measured value compared with an expected one; also UNCLEAR and ONE_SEED."""


def meaning(word: str, factor: float) -> str:
    """The sentence of a legend, for a margin with the ratio ``factor``."""
    return VERDICTS[word].meaning.format(factor=factor)


_FILE = Path(__file__).with_name("terms.csv").read_text(encoding="utf-8").splitlines()
TERMS: dict[str, str] = {
    row["term"]: row["sentence"].format(confidence=100 * CONFIDENCE, ratio=STABLE_RATIO)
    for row in csv.DictReader(_FILE)
}
"""Words that are in no other table."""


def glossary() -> dict[str, str]:
    """Every word with its sentence: :data:`TERMS`, verdicts, sites and statistics."""
    sentences = {
        **{name: site.label for name, site in SITES.items()},
        **{name: f"{stat.label}: {stat.formula}" for name, stat in STATS.items()},
        **{word: meaning(word, STABLE_RATIO) for word in VERDICTS},
    }
    return {word: f"{text[:1].upper()}{text[1:]}." for word, text in sentences.items()} | TERMS
