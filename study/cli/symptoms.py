"""``study advise --symptom``: symptoms of failed training, and their causes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from study.analysis.advice import Basis, Setting, lost_in_bf16
from study.store import StudyTables
from study.theory import family
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import MODEL_WIDE

PAGES = {name: f"docs/{name}.md" for name in ("no-learning", "diverged", "grad-norm")}
PAGES["nothing-changes"] = "docs/no-learning.md#in-bf16"
LOOKS = (
    "With a configuration, a cell or a study, this looks at the rate against the best one, gamma, "
    "and bf16; after training also at layers that do not move, eps against gradients, and clipping."
)
SMALL = ("no-learning", "nothing-changes")
LARGE = ("diverged", "grad-norm")
USUAL, LOST, NEAR_EPS = 16.0, 0.1, 100.0
Cause = tuple[float, str, str, tuple[str, ...]]
"""A weight by how much something is off, what a run shows, the change, and the symptoms."""


def causes(
    run: Setting, words: Sequence[str], law: Basis | None, tables: StudyTables | None
) -> Iterator[Cause]:
    """What a run shows. ``law``: of its best rate. ``tables``: of its cell, if it has run."""
    if law and run.lr and not law.rate.low <= run.lr <= law.rate.high:
        off, best = run.lr / law.rate.value, f"{law.rate.value:.1e}"
        where = f"{law.where.source}, {law.where.steps} steps" if law.where else "theory"
        seen = f"learning rate {run.lr:g} is {off:.2g} times the best one of {where}"
        symptoms = LARGE[:1] if off > 1 else SMALL
        yield (abs(math.log(off)), seen, f"learning rate {best}", symptoms)
    above = run.gamma / (USUAL / run.rank)
    if above > 1.5 and family(run.optimizer) == "sign":
        doubled = " (alpha = 2r)" if run.p == 1 and math.isclose(run.alpha, 2 * run.rank) else ""
        seen = f"gamma is {run.gamma:.3g}{doubled}, {above:.3g} times that of LoRA with alpha 16"
        change = (
            f"alpha {run.alpha / above:.3g}, or a rate divided by {above**0.5:.2g} to {above:.2g}"
        )
        yield (math.log(above) / 2, seen, change, LARGE)
    lost: Mapping[Any, float] = {}
    if "precision=bf16" in words and run.lr:
        lost = lost_in_bf16(run, run.lr)
    if tables is not None:
        yield from _of_tables(run, tables)
        rows = tables.probes[tables.probes["swallowed"].notna()]
        lost = rows.groupby("step")["swallowed"].median().to_dict() or lost
    if lost and max(lost.values()) > LOST:
        shares = ", ".join(f"{share:.0%} after {step}" for step, share in sorted(lost.items()))
        passed = [step for step in sorted(lost) if lost[step] <= LOST]
        when = f"passes by step {passed[0]}" if passed else "does not pass in these steps"
        seen = f"bf16 loses part of the adapter's output: {shares} updates; it {when}"
        change = "round_once(model) for PEFT (docs/bf16.md), or float32"
        yield (4 * max(lost.values()), seen, change, SMALL)


def _of_tables(run: Setting, tables: StudyTables) -> Iterator[Cause]:
    probes = tables.probes[(tables.probes["layer"] != MODEL_WIDE)]
    norms = probes[probes["site"] == "adapter_update"].groupby("layer", observed=True)["norm"].max()
    if fixed := [str(layer) for layer in norms[norms == 0].index]:
        seen = f"{len(fixed)} of {len(norms)} layers do not move, such as {fixed[0]}"
        yield (6 * len(fixed) / len(norms), seen, "set requires_grad on them", SMALL)
    grads = probes[probes["site"] == "adapter_grad"].groupby("step")["rms"].median()
    eps = tables.cells["eps"].iloc[0] if "eps" in tables.cells else math.nan
    if OPTIMIZERS[run.optimizer].has_eps and len(grads) and grads.min() < NEAR_EPS * eps:
        seen = (
            f"in the median layer gradients are down to {grads.min() / eps:.2g} times eps {eps:g}"
        )
        yield (math.log(NEAR_EPS * eps / grads.min()), seen, "a lower eps, or alpha up", SMALL)
    factors = tables.metrics["clip_factor"].dropna()
    if (factors < 1).any():
        share, least = (factors < 1).mean(), factors.min()
        seen = f"{share:.0%} of the gradients are clipped, down to {least:.2g} of their size"
        change = f"a limit {1 / least:.2g} times as high" if share > 0.5 else "none: it is rare"
        yield (share * -math.log(least), seen, change, ("no-learning", "grad-norm"))


def symptom_lines(symptom: str, run: str = "", found: Sequence[Cause] = ()) -> list[str]:
    """Of the causes ``found`` in a ``run``, those of the symptom, and the page on it."""
    own = sorted((one for one in found if symptom in one[-1]), reverse=True)
    lines = [f"{n}. {seen}. Change: {change}." for n, (_, seen, change, _) in enumerate(own, 1)]
    what = "The likeliest cause first:" if own else "It shows no known cause of this."
    head = [f"{run}. {what}"] if run else []
    return [*head, *(lines or [LOOKS]), f"page: {PAGES[symptom]}"]
