"""The verdicts on the slope of a quantity against rank; the glossary of tables and pages."""

import csv
from dataclasses import dataclass
from pathlib import Path

from study.vocabulary.quantities import SITES, STATS
from study.vocabulary.thresholds import CONFIDENCE, STABLE_RATIO


@dataclass(frozen=True)
class Verdict:
    """One word. ``meaning``: for a legend; ``{factor}`` is the ratio of the margin. ``beyond``:
    whether the word says that the change is larger than the margin."""

    meaning: str
    beyond: bool = False


UNKNOWN_SIZE = "we cannot tell whether by more than {factor:g} times"

VERDICTS: dict[str, Verdict] = {
    "keeps its size": Verdict("changes by less than {factor:g} times"),
    "shrinks": Verdict("by more than {factor:g} times", beyond=True),
    "grows": Verdict("by more than {factor:g} times", beyond=True),
    "falls": Verdict(f"shrinks; {UNKNOWN_SIZE}"),
    "rises": Verdict(f"grows; {UNKNOWN_SIZE}"),
    "unclear": Verdict("these seeds cannot tell"),
    "one seed": Verdict("one seed gives no verdict"),
}
STABLE, SHRINKS, GROWS, FALLS, RISES, UNCLEAR, ONE_SEED = VERDICTS


AGREES, DIFFERS = "agrees", "differs"
"""The words for a measured value compared with an expected one; also UNCLEAR and ONE_SEED."""


def meaning(word: str, factor: float) -> str:
    return VERDICTS[word].meaning.format(factor=factor)


_FILE = Path(__file__).with_name("terms.csv").read_text(encoding="utf-8").splitlines()
TERMS: dict[str, str] = {
    row["term"]: row["sentence"].format(confidence=100 * CONFIDENCE, ratio=STABLE_RATIO)
    for row in csv.DictReader(_FILE)
}
"""Words that are in no other table."""


def glossary() -> dict[str, str]:
    sentences = {
        **{name: site.label for name, site in SITES.items()},
        **{name: f"{stat.label}: {stat.formula}" for name, stat in STATS.items()},
        **{word: meaning(word, STABLE_RATIO) for word in VERDICTS},
    }
    return {word: f"{text[:1].upper()}{text[1:]}." for word, text in sentences.items()} | TERMS
