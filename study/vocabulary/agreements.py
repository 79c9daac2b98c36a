"""The words for a measured exponent beside a predicted interval."""

from study.vocabulary.verdicts import ONE_SEED, UNCLEAR, VERDICTS, Verdict

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
AGREES, DIFFERS = list(AGREEMENTS)[:2]


def meaning(word: str, factor: float) -> str:
    """The sentence of a legend, for a tolerance that stands for the ratio ``factor``."""
    return AGREEMENTS[word].meaning.format(factor=factor)
