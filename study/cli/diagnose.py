"""``study advise --symptom``: what a run shows that may cause a failure, and what no file shows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from study.analysis import advice
from study.analysis.advice import BF16_MATTERS, Span, number, rounded
from study.analysis.law import Setting
from study.cli.given import SYMPTOMS, USUAL_ALPHA, Given, about_run, rate_text, read_run
from study.store import StudyTables, cell_folders
from study.store.tables import load_measured
from study.theory import family
from study.theory.rounding import BF16_REMEDY
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import MODEL_WIDE

LOOKS = (
    "With a configuration, a cell or a study, this looks at the rate against the best one, gamma, "
    "and bf16; after training also at layers that do not move, eps against gradients, and clipping."
)
"""Of a question without a run."""
UNSEEN = (
    "A file does not show: labels that are shifted or cover the padding, masks of packed rows, "
    "rows of data that are empty or far too long, a base whose own loss is not finite.",
    "Ten recorded steps do: with study.record('results/mine', model, optimizer, steps=range(10)): "
    "around your loop, then study report results/mine.",
)
"""Of a run that diverged."""
DIVERGED = "diverged"
SMALL = ("no-learning", "nothing-changes")
"""The symptoms of steps that are too small."""
NEAR_EPS = 100.0
"""Gradients below this many times eps count as near it."""
FP16 = ("fp16", "float16", "training.fp16")
"""The keys of tools that ask for fp16."""
Cause = tuple[float, str, str, tuple[str, ...]]
"""A weight by how much something is off, what a run shows, the change, and the symptoms."""


def worst_cell(path: Path) -> tuple[Path, StudyTables | None]:
    """A cell and its tables: that of a study which ended worst; ``path`` if it is neither."""
    is_cell = path.parent.name == "cells"
    folder = path.parent.parent if is_cell else path if cell_folders(path) else None
    if folder is None:
        return path, None
    tables = load_measured(folder)
    losses = tables.metrics.astype({"cell_id": str}).groupby("cell_id")["loss"]
    ends = losses.agg(lambda rows: rows.iloc[-1]).fillna(math.inf)
    worst = ends[[name for name in ends.index if not is_cell or name.startswith(path.name)]]
    path = folder / "cells" / str(worst.idxmax())
    parts = {name: getattr(tables, name) for name in ("cells", "metrics", "probes")}
    own = {key: part[part["cell_id"].astype(str) == path.name] for key, part in parts.items()}
    return path, replace(tables, **own)


def causes(given: Given, law: Span | None, tables: StudyTables | None) -> Iterator[Cause]:
    """What a run shows. ``law``: its best rate. ``tables``: of its cell, if it has run.

    gamma by itself diverges nothing: the law's rate is that of this gamma."""
    run = given.run
    if law and run.lr and not law.low <= run.lr <= law.high:
        off = run.lr / law.value
        seen = f"learning rate {run.lr:g} is {number(off)} times the best one by the law"
        symptoms = (DIVERGED,) if off > 1 else SMALL
        yield (abs(math.log(off)), seen, f"learning rate {rate_text(rounded(law.value))}", symptoms)
    above = run.gamma / (USUAL_ALPHA / run.rank)
    if above > 1.5 and family(run.optimizer) == "sign":
        is_doubled = run.rule == "lora" and math.isclose(run.alpha, 2 * run.rank)
        doubled = " (alpha = 2r)" if is_doubled else ""
        seen = f"gamma is {run.gamma:.3g}{doubled}, {above:.3g} times that of LoRA with alpha 16"
        rates = f"a rate divided by {above**0.5:.2g} to {above:.2g}"
        change = f"alpha {run.alpha / above:.3g}, or {rates}"
        yield (math.log(above) / 2, seen, change, ("grad-norm",))
    if not {*FP16}.isdisjoint(given.untaken):
        yield (1.0, "fp16 overflows above 65,504", "bf16: true, fp16: false", (DIVERGED,))
    if given.warmup == 0:
        yield (0.3, "there is no warm-up", "a warm-up of 3 % of the steps", (DIVERGED,))
    lost: Mapping[Any, float] = {}
    if given.is_bf16 and run.lr:
        lost = advice.lost_in_bf16(run, run.lr)
    if tables is not None:
        yield from _of_tables(run, tables)
        rows = tables.probes[tables.probes["swallowed"].notna()]
        lost = rows.groupby("step")["swallowed"].median().to_dict() or lost
    if lost and max(lost.values()) > BF16_MATTERS:
        shares = ", ".join(f"{share:.0%} after {step}" for step, share in sorted(lost.items()))
        seen = f"bf16 loses part of the adapter's output: {shares} updates"
        change = f"{BF16_REMEDY}, or float32"
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
    """Of the causes ``found`` in a ``run``, those of the symptom; what no file shows; and why."""
    own = sorted((one for one in found if symptom in one[-1]), reverse=True)
    lines = [f"{n}. {seen}. Change: {change}." for n, (_, seen, change, _) in enumerate(own, 1)]
    what = "The likeliest cause first:" if own else "It shows no known cause of this."
    head = [f"{run}. {what}"] if run else []
    unseen = UNSEEN if run and symptom == DIVERGED else () if lines else (LOOKS,)
    return [*head, *lines, *unseen, SYMPTOMS[symptom]]


def causes_in(path: Path, options: Mapping[str, Any]) -> tuple[str, list[Cause]]:
    """A configuration, a cell, or the cell of a study that ended worst; and what it shows."""
    path, tables = worst_cell(path)
    given = read_run(path, options)
    same = replace(given.run, lr=None)
    law = next((one.rate for one in advice.advise(same, same) if not one.is_relative), None)
    about = f"{given.origin}: {about_run(given.run)}"
    if law and given.run.lr and law.low <= given.run.lr <= law.high:
        ends = f"{rate_text(rounded(law.low))} to {rate_text(rounded(law.high))}"
        about += f", which is usual (90 %: {ends})"
    return about, list(causes(given, law, tables))
