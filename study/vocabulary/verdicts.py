"""The verdicts on the slope of a quantity against rank; the glossary of tables and pages."""

from dataclasses import dataclass
from typing import Literal

from study.vocabulary.quantities import SITES, STATS
from study.vocabulary.thresholds import CONFIDENCE, STABLE_RATIO

Colour = Literal["green", "red", "yellow", "grey"]
"""``green``: shown to be stable. ``red``: shown to be beyond the margin. ``yellow``: not decided,
or a slope of unknown size. ``grey``: not tested."""


@dataclass(frozen=True)
class Verdict:
    """One word.

    - ``predicate``: the word in a sentence about a quantity ("the gradient norm ... collapses");
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


TERMS: dict[str, str] = {
    "cell": "One configuration that is trained once: one rule, rank, seed and setting.",
    "rank": "The number r of rows of A and of columns of B. The adapter adds γBA to a weight.",
    "rule": "How γ, the factor of BA, depends on the rank: LoRA has α/r, rsLoRA has α/√r.",
    "gamma": "γ, the factor of BA in the adapter: α/r under LoRA, α/√r under rsLoRA.",
    "seed": "The number that draws A and the batches. Intervals compare seeds.",
    "optimizer": "The rule that turns gradients into updates of A and B.",
    "setting": "Everything that differs between cells, except rule, rank, seed and optimizer.",
    "site": "The tensor that a probe measures, such as the output of an adapter.",
    "stat": "The number that a probe computes from a tensor, such as its norm.",
    "batch": "The sequences that a probe measures on: those of the step, or held-out ones.",
    "kind": "The role of a layer in its block, such as q_proj.",
    "layer": "A linear layer of the base model that has an adapter.",
    "step": "The number of updates before the measurement: step 0 is before the first one.",
    "exponent": "The slope of log stat against log rank: 0 is stable, −0.5 falls as 1/√r.",
    "brackets": f"The {100 * CONFIDENCE:g} % interval of the exponent over seeds. With one seed, "
    "they show how straight the line is.",
    "factor": "The factor by which the quantity changes from the lowest to the highest rank.",
    "theory": "The exponent that the theory predicts for the same ranks and conditions.",
    "verdict": "Whether the quantity is shown to be stable as the rank grows. Stable is a change "
    f"by less than a factor of {STABLE_RATIO:g}.",
    "bent": "The points are not on a straight line, so one exponent does not describe all ranks.",
    "p*": "The p in γ = α/r^p at which a quantity does not depend on the rank.",
    "corrected": "p* at large rank: the measured p* without the bend that low ranks add.",
    "held-out loss": "The loss on examples that are not trained on, in nats per token.",
    "best rate": "The learning rate with the lowest mean loss over seeds, among those that every "
    "rank was trained at.",
    "smoothing": "The weight of earlier steps in a moving average. 0 shows the loss as it is.",
    "complete": "The cell was trained to its last step.",
    "running": "A process trains the cell.",
    "waiting": "A running sweep has the cell on its list and has not begun it.",
    "interrupted": "The cell stopped before its end. Rerun the command to resume.",
    "diverged": "A loss or gradient of the cell was not finite.",
    "stuck": "The gradient was zero and the loss did not change.",
    "failed": "The cell ended with an error.",
    "unreadable": "The files of the cell are damaged.",
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
