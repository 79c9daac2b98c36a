"""The claims of the literature and of this project's theory, and where a study tests each.

A claim is tested by expectations that the cells of a study hold (:mod:`docs.evidence`). ``reads``
says what a verdict on the expectation means for the claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.config.expectations import (
    ALPHA_GAP,
    BEST_ALPHA,
    BEST_RATE,
    FACTOR,
    LOSS_GAP,
    NOT_MEASURED,
    P_STAR,
    P_STAR_LIMIT,
    SLOPE,
    Expectation,
)
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import AGREES, DIFFERS, ONE_SEED, UNCLEAR

SUPPORTS = {AGREES: "holds", DIFFERS: "**fails**", UNCLEAR: "open"}
"""What a verdict says of a claim that predicts the expected value."""
REFUTES = {AGREES: "**fails**", DIFFERS: "open", UNCLEAR: "open"}
"""The same for a claim that the expected value contradicts."""
LOWER = {AGREES: "**fails**", DIFFERS: "holds", UNCLEAR: "open"}
"""The same for a claim that a value is below the expected one. It fails if the value is above."""
UNTESTED = {ONE_SEED: "one seed", NOT_MEASURED: NOT_MEASURED}

RSLORA = "Kalajdzievski 2023, 2312.03732"
ABSTRACT, SECOND_HAND = "from the abstract", "second hand"
FORWARD: dict[str, Any] = {"site": "adapter_out", "stat": "rms"}
BACKWARD: dict[str, Any] = {"site": "adapter_in_grad", "stat": "rms"}
GRADIENT: dict[str, Any] = {"site": "adapter_grad", "stat": "norm"}
DESCENT: dict[str, Any] = {"site": "adapter_update", "stat": "descent"}
HELDOUT: dict[str, Any] = {"batch": "heldout"}


@dataclass(frozen=True)
class Claim:
    """One row of the table of claims.

    - ``claim``: a sentence; ``source``: paper and place, and how it was read;
    - ``regime``: model, optimizer and time; ``study``: of :data:`docs.studies.STUDIES`; empty if
      none tests it;
    - ``where``: fields of the expectations that test it, with their values;
    - ``reads``: what each verdict on them says of the claim;
    - ``unstated``: a comparison that no experiment stated beforehand, in place of ``where``.
    """

    claim: str
    source: str
    regime: str
    study: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=lambda: SUPPORTS)
    unstated: Expectation | None = None


def _of(what: str, optimizer: str, p: float | None = None, step: Any = None, **more: Any) -> Any:
    known = {"what": what, "optimizer": optimizer, "p": p, "step": step}
    return {key: value for key, value in known.items() if value is not None} | more


def _unstated(what: str, optimizer: str, rule: str, **more: Any) -> Expectation:
    """A comparison at the last step, by this project's margin: no change with the rank.

    A factor by which a quantity changes over the ranks is 1 to a factor of 1.5, as for the verdict
    *stable*; a loss changes by less than 0.05 nats.
    """
    predicted, tolerance = (0, 0.05) if what == LOSS_GAP else (1, STABLE_RATIO)
    return Expectation(
        what=what,
        predicted=predicted,
        tolerance=tolerance,
        optimizer=optimizer,
        rule=rule,
        step="last",
        source="",
        refuted_by="",
        **more,
    )


THEOREM = f"{RSLORA}: Theorem 3.2, {SECOND_HAND}"
PROOF = f"{RSLORA}: appendix A, {SECOND_HAND}"
FIGURE = f"{RSLORA}: Figure {{}}, {SECOND_HAND}"
OWN = "this project, study/theory"
REGRET = f"LoRA Without Regret (Schulman et al. 2025), {SECOND_HAND}"
MUA = f"muA, 2602.06204, {ABSTRACT}"
LORA_ALPHA = f"LoRA-α, 2606.12883, {ABSTRACT}"
LORA_MUON = f"LoRA-Muon, 2606.12921, {ABSTRACT}"

OVER_TRAINING = (
    ("SmolLM2, {}, 40 steps", "theorem_over_training"),
    ("tiny, {}, 400 steps", "theorem_over_training_tiny"),
)
_STABILIZED = "Outputs of the adapters do not depend on the rank at γ = α/√r."
_BACK = "Gradients that adapters pass to their inputs do not depend on the rank at γ = α/√r."
_COLLAPSE = "At γ = α/r outputs of the adapters collapse as the rank grows."

_CROSSOVER = (
    "the best learning rate falls with the rank: as r^(-(1-p)) while A hardly moves, half as fast "
    "once it has moved beyond its start. Expected: the crossover of theory, one value per α."
)

CLAIMS: tuple[Claim, ...] = (
    # rsLoRA's theorem, which is about SGD.
    *(
        Claim(
            text,
            THEOREM,
            "SmolLM2, SGD, one lazy step",
            "stable_exponent",
            _of(P_STAR_LIMIT, "sgd", step=1, **place),
        )
        for text, place in ((_STABILIZED, FORWARD), (_BACK, BACKWARD))
    ),
    *(
        Claim(
            text,
            THEOREM,
            "SmolLM2, SGD, 40 steps, held-out inputs",
            "theorem_over_training",
            _of(SLOPE, "sgd", p, "last", **place, **HELDOUT),
        )
        for text, place, p in (
            (_STABILIZED, FORWARD, 0.5),
            (f"{_BACK} (Expected: the curve at finite rank.)", BACKWARD, 0.5),
            (_COLLAPSE, FORWARD, 1),
        )
    ),
    Claim(
        _STABILIZED,
        THEOREM,
        "tiny, SGD, 400 steps, held-out inputs",
        "theorem_over_training_tiny",
        _of(SLOPE, "sgd", 0.5, "last", **FORWARD, **HELDOUT),
    ),
    # The same condition under optimizers that the proof does not cover.
    Claim(
        "The theorem's condition at γ = α/√r also holds under Adam.",
        f"{RSLORA}: its experiments use AdamW, {SECOND_HAND}",
        "SmolLM2, AdamW, one lazy step",
        "stable_exponent",
        _of(P_STAR_LIMIT, "adamw", step=1, **FORWARD),
        REFUTES,
    ),
    Claim(
        "The theorem's condition at γ = α/√r also holds under Adam.",
        f"{RSLORA}: its experiments use AdamW, {SECOND_HAND}",
        "SmolLM2, AdamW, 40 steps, held-out inputs",
        "theorem_over_training",
        _of(SLOPE, "adamw", 0.5, "last", **FORWARD, **HELDOUT),
        REFUTES,
    ),
    Claim(
        "The theorem's condition at γ = α/√r also holds under Adam.",
        f"{RSLORA}: its experiments use AdamW, {SECOND_HAND}",
        "tiny, AdamW, 400 steps, held-out inputs",
        "theorem_over_training_tiny",
        unstated=_unstated(FACTOR, "adamw", "rslora", **FORWARD, **HELDOUT),
    ),
    # The paper's figures.
    *(
        Claim(
            "The gradient norm at the start goes as γ√r: it collapses at γ = α/r and does not at "
            "γ = α/√r.",
            PROOF,
            f"SmolLM2, {name}, step 0",
            "theorem_over_training",
            _of(SLOPE, optimizer, step=0, **GRADIENT),
        )
        for optimizer, name in (("sgd", "SGD"), ("adamw", "AdamW"))
    ),
    *(
        Claim(
            "At γ = α/√r the gradient norm does not depend on the rank in training.",
            FIGURE.format(number),
            regime.format(name),
            study,
            unstated=_unstated(FACTOR, optimizer, "rslora", **GRADIENT),
        )
        for number, optimizer, name in ((3, "adamw", "AdamW"), (4, "sgd", "SGD"))
        for regime, study in OVER_TRAINING
    ),
    *(
        Claim(
            "At γ = α/r the gradient norm collapses as the rank grows.",
            FIGURE.format(number),
            regime.format(name),
            study,
            _of(SLOPE, optimizer, 1, "last", **GRADIENT),
        )
        for number, optimizer, name in ((3, "adamw", "AdamW"), (4, "sgd", "SGD"))
        for regime, study in OVER_TRAINING
    ),
    *(
        Claim(
            text,
            FIGURE.format(2),
            regime.format(name),
            study,
            reads=reads,
            unstated=_unstated(LOSS_GAP, optimizer, rule),
        )
        for optimizer, name in (("adamw", "AdamW"), ("sgd", "SGD"))
        for rule, text, reads in (
            ("rslora", "At γ = α/√r a higher rank has a lower loss at one learning rate.", LOWER),
            ("lora", "At γ = α/r the loss does not depend on the rank.", SUPPORTS),
        )
        for regime, study in OVER_TRAINING
    ),
    Claim(
        "At γ = α/√r the gradient norm does not depend on the rank with other data and Adafactor.",
        FIGURE.format(5),
        "SmolLM2, Adafactor, 40 steps",
        "paper_fig5",
        _of(FACTOR, "adafactor", 0.5, "last", **GRADIENT),
    ),
    *(
        Claim(
            text,
            f"{RSLORA}: its ablation of the targets, {SECOND_HAND}",
            "SmolLM2, AdamW, attention only, 40 steps",
            "paper_attention",
            where,
        )
        for text, where in (
            (
                "At γ = α/√r the gradient norm does not depend on the rank in training.",
                _of(FACTOR, "adamw", 0.5, "last", **GRADIENT),
            ),
            (
                "At γ = α/r the gradient norm collapses as the rank grows.",
                _of(SLOPE, "adamw", 1, "last", **GRADIENT),
            ),
        )
    ),
    Claim(
        "With A smaller by √r, a high rank learns less than a low one at γ = α/r.",
        f"{RSLORA}: appendix B.3, {SECOND_HAND}; the size: {OWN}",
        "SmolLM2, SGD, 40 steps",
        "paper_b3",
        _of(LOSS_GAP, "sgd", 1, "last"),
    ),
    # Learning rates.
    *(
        Claim(
            "At γ = α/r the best learning rate does not depend on the rank.",
            f"{REGRET}, \\|slope\\| below 0.14; {MUA}",
            f"{model}, AdamW",
            study,
            _of(BEST_RATE, "adamw", 1) | {"alpha": None},
        )
        for model, study in (
            ("tiny", "learning_rate_rho_tiny"),
            ("SmolLM2", "learning_rate_rho"),
            ("SmolLM2, 20 steps", "paper_learning_rate"),
        )
    ),
    *(
        Claim(
            text,
            source,
            f"{model}, AdamW",
            study,
            _of(BEST_RATE, "adamw", p),
        )
        for p, text, source in (
            (0, f"At γ = α {_CROSSOVER}", f"{MUA}: 1/r; the crossover: {OWN}"),
            (0.5, f"At γ = α/√r {_CROSSOVER}", OWN),
        )
        for model, study in (
            ("tiny", "learning_rate_rho_tiny"),
            ("SmolLM2", "learning_rate_rho"),
        )
    ),
    # Alpha.
    *(
        Claim(text, LORA_ALPHA, f"{model}, AdamW{regime}", study, _of(what, "adamw"))
        for text, regime, what in (
            ("The best α goes as √r.", ", fixed learning rate", BEST_ALPHA),
            (
                "A large α with a small learning rate gains what a large learning rate can't.",
                "",
                ALPHA_GAP,
            ),
        )
        for model, study in (("tiny", "alpha_against_lr_tiny"), ("SmolLM2", "alpha_against_lr"))
    ),
    # Other optimizers.
    *(
        Claim(
            text,
            source,
            "SmolLM2, one or two lazy steps",
            study,
            _of(P_STAR, optimizer, **DESCENT),
        )
        for optimizer, study, text, source in (
            (
                "sgd",
                "stable_exponent",
                "SGD's steps lower the loss at every rank alike at p = 1/2.",
                OWN,
            ),
            ("adamw", "stable_exponent", "AdamW's do at p = 1.", OWN),
            ("signsgd", "stable_exponent", "SignSGD's do at p = 1.", OWN),
            ("lion", "optimizer_history", "Lion's do at p = 1.", OWN),
            ("rmsprop", "optimizer_history", "RMSprop's do at p = 1.", OWN),
            ("adafactor", "optimizer_history", "Adafactor's do at p = 1.", OWN),
            ("muon", "optimizer_history", "Muon's do at the p of the nuclear norm.", OWN),
        )
    ),
    Claim(
        "Learning rates transfer across ranks under Muon at fixed γ.",
        f"{LORA_MUON}; its optimizer differs from torch's Muon",
        "SmolLM2, torch's Muon, one lazy step",
        "optimizer_history",
        _of(P_STAR, "muon", step=1, **FORWARD),
    ),
    # No drift.
    Claim(
        "Training does not drift with the rank at γ = α/r under Adam.",
        REGRET,
        "tiny, AdamW, 400 steps, held-out inputs",
        "theorem_over_training_tiny",
        _of(SLOPE, "adamw", 1, "last", **FORWARD, **HELDOUT),
    ),
    Claim(
        "A quantised base changes no exponent.",
        OWN,
        "SmolLM2 at 4, 8 and 32 bits, AdamW, two lazy steps",
        "quantised",
        _of(P_STAR, "adamw"),
    ),
    Claim(
        "A and B need learning rates of their own.",
        f"LoRA+, 2402.12354, {ABSTRACT}",
        "the claim is about width. A ratio of the two rates is a factor that does not depend on "
        "the rank",
    ),
)
