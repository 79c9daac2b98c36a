"""The answer of FINDINGS.md: five sentences, each with the numbers of the studies it rests on."""

from typing import Any

from docs.blocks import NoTables, minus, study_tables
from docs.claims import DESCENT, FORWARD, GRADIENT, HELDOUT
from docs.evidence import matching
from study.config.expectations import BEST_RATE, P_STAR, P_STAR_LIMIT, SLOPE
from study.report.expected import measured_text
from study.report.text import bullets

HISTORY, OVER_TRAINING = "optimizer_history", "theorem_over_training"
P_STAR_STUDY, RATES = "stable_exponent", "learning_rate_rho_tiny"
RATES_SMOLLM2, RATES_OF_RULES = "learning_rate_rho", "paper_learning_rate"


def answer() -> str:
    """Five sentences."""
    return minus(bullets([_sgd(), _adam(), _gradients(), _rates(), _muon()]))


def in_one_sentence() -> str:
    """The sentence below the README's first figure, on the last step that it shows."""
    cells = study_tables(OVER_TRAINING).cells
    ranks = f"{cells['rank'].min():g} to {cells['rank'].max():g}"
    return minus(
        f"Ranks {ranks} on SmolLM2-135M, after {cells['steps'].max():g} steps, on held-out inputs. "
        f"Under SGD the adapters' output goes as r to the power {_trained('sgd', 0.5)} at γ = α/√r "
        f"(rsLoRA) and {_trained('sgd', 1)} at γ = α/r (LoRA). Under AdamW it goes as r to the "
        f"power {_trained('adamw', 0.5)} (rsLoRA) and {_trained('adamw', 1)} (LoRA): the rule that "
        "keeps it nearly constant is rsLoRA's under SGD and LoRA's under AdamW."
    )


def _sgd() -> str:
    descent = _found(P_STAR_STUDY, what=P_STAR, optimizer="sgd", step=0, **DESCENT)
    output = _found(P_STAR_STUDY, what=P_STAR_LIMIT, optimizer="sgd", **FORWARD)
    return (
        "**Under SGD, outputs do not depend on the rank at γ = α/√r, as rsLoRA proves.** The p at "
        "which a first step lowers the loss equally at "
        f"every rank is {descent}, and the p at which the adapters' output does not depend on the "
        f"rank is {output} once the finite ranks are corrected for. After 40 steps, the output "
        f"on held-out inputs goes as r to the power {_trained('sgd', 0.5)} at γ = α/√r and "
        f"{_trained('sgd', 1)} at γ = α/r."
    )


def _adam() -> str:
    descent = _found(P_STAR_STUDY, what=P_STAR, optimizer="adamw", step=0, **DESCENT)
    output = _found(P_STAR_STUDY, what=P_STAR_LIMIT, optimizer="adamw", **FORWARD)
    return (
        "**Under Adam with small steps, α/r is the stable rule, not α/√r.** Every entry of an "
        "update has the size of the learning rate, whatever the gradient, so a higher rank moves "
        f"more. The same two exponents are {descent} and {output}. After 40 steps the output goes "
        f"as r to the power {_trained('adamw', 0.5)} at α/√r and {_trained('adamw', 1)} at α/r."
    )


def _gradients() -> str:
    start = _found(OVER_TRAINING, what=SLOPE, step=0, p=1.0, **GRADIENT)
    last = _found(OVER_TRAINING, what=SLOPE, step="last", optimizer="adamw", p=0.5, **GRADIENT)
    return (
        "**The gradient norm can't decide between the rules.** At the start it goes as γ√r under "
        f"every optimizer (r to the power {start} at α/r), because no optimizer has acted yet, "
        "and Adam divides it out. Under AdamW it goes as r to the power "
        f"{last} at α/√r after 40 steps."
    )


def _rates() -> str:
    exponents = [
        f"{_range(RATES, what=BEST_RATE, optimizer='adamw', p=p)} at p = {name}"
        for p, name in ((0.0, "0"), (0.5, "1/2"), (1.0, "1"))
    ]
    lazy = {"what": BEST_RATE, "optimizer": "adamw", "alpha": 256}
    smollm2 = [_found(RATES_SMOLLM2, p=p, **lazy) for p in (0.0, 0.5)]
    lora = _found(RATES_OF_RULES, what=BEST_RATE, optimizer="adamw", p=1.0)
    return (
        "**The best learning rate under Adam is where the claims meet.** Theory puts it at "
        "r^(-(1-p)) while A hardly moves, and at the square root of that once A has moved beyond "
        "its start, so that it does not depend on the rank at p = 1 only. On SmolLM2 it goes as r "
        f"to the power {smollm2[0]} at p = 0 and {smollm2[1]} at p = 1/2, both at an α at which A "
        f"hardly moves, and {lora} at p = 1. On a tiny model, over all α, it goes as r to the "
        f"power {'; '.join(exponents)}."
    )


def _muon() -> str:
    descent = _found(HISTORY, what=P_STAR, optimizer="muon", step=0, **DESCENT)
    others = _found(HISTORY, what=P_STAR, optimizer="lion", step=0, **DESCENT)
    return (
        "**Other optimizers belong to one of three families.** Lion, RMSprop and Adafactor act as "
        f"Adam does (Lion: {others}). The update of Muon has equal singular values. With torch's "
        f"factor √(rows/columns) on it, its p\\* is {descent} over the ranks measured."
    )


def _trained(optimizer: str, p: float) -> str:
    where = {"what": SLOPE, "step": "last", "optimizer": optimizer, "p": p}
    return _found(OVER_TRAINING, **where, **FORWARD, **HELDOUT)


def _range(study: str, **where: Any) -> str:
    """``-0.84 to -0.44``: the lowest and the highest of the measured values."""
    try:
        values = sorted(row.measured for row in matching(study, where))
    except NoTables:
        return f"(not run: `{study}`)"
    ends = dict.fromkeys(f"{value:.2f}" for value in values[:1] + values[-1:])
    return " to ".join(ends) or "(not measured)"


def _found(study: str, **where: Any) -> str:
    """The measured values of the expectations with these fields, or that the study was not run."""
    try:
        rows = matching(study, where)
    except NoTables:
        return f"(not run: `{study}`)"
    return ", ".join(dict.fromkeys(map(measured_text, rows))) or "(not measured)"
