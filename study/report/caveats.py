"""Reasons to doubt a study's numbers, found in its tables and records."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from study.analysis.capacity import BEHIND, departures
from study.analysis.grouping import CURVE_ID, curve_columns, curve_labels, groups, seed_numbers
from study.analysis.predictions import lazy_ratios, over_eps
from study.analysis.rates import INSIDE
from study.analysis.text import broken_list, cell_list, distinct, first_of, joined, row_list
from study.analysis.wording import curve_names, curve_settings
from study.errors import count_noun
from study.report.provenance import UNREADABLE, Record
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.statuses import DONE, STATUSES, end_step
from study.vocabulary.thresholds import FEW_SEEDS, LAZY_WITHIN, SEEDS_FOR_VERDICT, SIGN_LIKE_FROM

SHORT = 100
"""Runs with fewer steps than this end early in training."""


def caveats(tables: StudyTables, records: Sequence[Record]) -> list[str]:
    """A line per caveat, the most important first, of all cells, including unreadable ones."""
    return [
        *_lost_cells(tables.cells, records),
        *_few_seeds(tables.cells),
        *_missing_seeds(tables.cells),
        *_two_ranks(tables.cells),
        *_noted(records),
        *_large_steps(tables),
        *_losses(tables),
        *_low_ranks(tables),
        *_small_beside_eps(tables),
    ]


def _lost_cells(cells: pd.DataFrame, records: Sequence[Record]) -> Iterator[str]:
    damaged = [record for record in records if record.get("status") == UNREADABLE]
    if damaged:
        reasons = [f"{record.get('cell_id')}: {record.get('error')}" for record in damaged]
        yield (
            f"**{count_noun(len(damaged), 'cell')} unreadable** ({first_of(reasons)}): no number "
            "here contains them until a sweep trains them again."
        )
    for status, about in STATUSES.items():
        own = cells[cells["status"] == status]
        if about.fits and len(own):
            names = broken_list(own) if about.ended_at else cell_list(own)
            use = about.fits.partition(". ")[0].removesuffix(".")
            use = use[0].lower() + use[1:]
            yield f"**{count_noun(len(own), 'cell')} {status}** ({names}): {use}."


def _few_seeds(cells: pd.DataFrame) -> Iterator[str]:
    seeds = len(set(seed_numbers(cells)))
    if seeds == 1:
        yield (
            "**One seed**: there are no verdicts, and brackets show how straight the line is, not "
            "how much another seed would differ."
        )
    elif seeds < SEEDS_FOR_VERDICT:
        yield f"**{seeds} seeds**: a verdict needs at least {SEEDS_FOR_VERDICT}."
    elif seeds < FEW_SEEDS:
        yield f"**{seeds} seeds**: intervals over fewer than {FEW_SEEDS} are too wide to rely on."


def _missing_seeds(cells: pd.DataFrame) -> Iterator[str]:
    """Ranks that have fewer seeds than their rule, over all learning rates."""
    labels = curve_labels(cells).assign(rank=cells["rank"], unit=seed_numbers(cells))
    rule = [name for name in curve_columns(labels) if name != "lr"]
    said = dict[str, None]()
    for own in groups(labels[cells["status"].isin(DONE)], rule):
        seeds, every = own.groupby("rank")["unit"].nunique(), own["unit"].nunique()
        said |= {f"rank {r:g} has {n} of {every}": None for r, n in seeds.items() if n < every}
    if said:
        yield (
            f"**Ranks that lack seeds** ({first_of(list(said))}): a rank with fewer than half of "
            "the seeds is in no exponent. Other missing cells are fitted."
        )


def _two_ranks(cells: pd.DataFrame) -> Iterator[str]:
    ranks = sorted({rank for rank in cells["rank"] if math.isfinite(rank)})
    if len(ranks) == 2:
        low, high = ranks
        yield (
            f"**Two ranks**: an exponent is a change between ranks {low:.0f} and {high:.0f}. Other "
            "ranks may not lie on its line."
        )


def _noted(records: Sequence[Record]) -> Iterator[str]:
    """Notes in records on the base: the share that has adapters, other weights, notes."""
    found: dict[str, None] = {}
    for record in records:
        share = record.get("adapted_share")
        if share is not None and share < 1:
            # Rounded down: 100 % would be wrong.
            part = f"**Part of {record.get('model')} is adapted**"
            percent = f"{math.floor(1000 * share) / 10:g} %"
            names = record.get("not_adapted", ())
            but = f", but not {first_of(names, ', ')}" if names else ""
            found[f"{part}: {percent} of the block weights have adapters{but}."] = None
    yield from found
    notes = (f"{r.get('model')}: {r['model_note']}" for r in records if r.get("model_note"))
    for note in dict.fromkeys(notes):
        yield f"**The base is not the published weights** ({note})."
    for note in dict.fromkeys(r["training_note"] for r in records if r.get("training_note")):
        yield f"**Noted in training**: {note}"


def _large_steps(tables: StudyTables) -> Iterator[str]:
    ratios = lazy_ratios(tables.metrics, tables.probes)
    ends = {str(row["cell_id"]): end_step(row) for row in tables.cells.to_dict("records")}
    ratios = ratios[ratios["step"] < ratios["cell_id"].map(ends).astype(float)]
    off = ratios[(ratios["ratio"] - 1).abs() > LAZY_WITHIN]
    if off.empty:
        return
    worst = off.iloc[int((off["ratio"] - 1).abs().argmax())]
    yield (
        f"**Steps too large for the linear theory**: at {len(off)} of {len(ratios)} probed updates "
        f"({cell_list(_of_ids(tables, off['cell_id']))}) the loss did not change by the predicted "
        f"amount within {100 * LAZY_WITHIN:.0f} %. The worst change is {100 * worst['ratio']:z.0f} "
        f"% of it ({cell_list(_of_ids(tables, [worst['cell_id']]))}, step {worst['step']:.0f}). "
        "From there on, their rules have no predictions."
    )


def _losses(tables: StudyTables) -> Iterator[str]:
    edges = tables.rates[tables.rates["edge"] != INSIDE] if len(tables.rates) else tables.rates
    if len(edges):
        ends = " or ".join(sorted(set(edges["edge"])))
        yield (
            f"**Best learning rate at the edge of the grid**: {len(edges)} of {len(tables.rates)} "
            f"best rates are the {ends} rate tried. The true best may lie outside, so the exponent "
            "of the best rate leaves them out."
        )
    if "steps" in tables.cells and len(tables.losses):
        steps = int(tables.cells["steps"].max())
        if steps < SHORT:
            yield f"**Short runs**: after {steps} steps, a final loss is from early in training."


def _low_ranks(tables: StudyTables) -> Iterator[str]:
    """Ranks that limit the loss of a run that is not short, if each rank had several rates."""
    if tables.rates.empty:
        return
    found = departures(tables)
    if found.empty:
        return
    found = found[found["steps"] == max(SHORT, found["steps"].max())].dropna(subset="step")
    found = found.assign(named=curve_names(found, curve_settings(found)))
    said = []
    for own in groups(found.sort_values("rank"), [CURVE_ID]):
        ranks = joined([f"rank {x.rank:.0f} from step {x.step:.0f}" for x in row_list(own)])
        said.append(f"{own['named'].iloc[0]}: {ranks}")
    if said:
        yield (
            f"**A low rank limits the loss** after {found['steps'].max()} steps, each rank at its "
            f"best rate: its training loss stays above that of rank {found['highest'].max():.0f}, "
            f"by more than {100 * BEHIND:.0f} % of what that rank learns ({first_of(said)})."
        )


def _small_beside_eps(tables: StudyTables) -> Iterator[str]:
    for factor in ("A", "B"):
        low = over_eps(tables.cells, tables.probes, factor).query(f"ratio < {SIGN_LIKE_FROM}")
        if low.empty:
            continue
        cells, worst = _of_ids(tables, low["cell_id"]), low.iloc[int(low["ratio"].argmin())]
        names = distinct(map(label, cells["optimizer"]))
        yield (
            f"**{names}'s eps affects the updates of {factor}**: in "
            f"{count_noun(len(cells), 'cell')} ({cell_list(cells)}) the median layer's rms "
            f"gradient is below {SIGN_LIKE_FROM:g} eps, down to {worst['ratio']:.1f} eps "
            f"({cell_list(_of_ids(tables, [worst['cell_id']]))}, step {worst['step']}). So updates "
            "are not fully sign-like."
        )


def _of_ids(tables: StudyTables, ids: Any) -> pd.DataFrame:
    return tables.cells[tables.cells["cell_id"].astype(str).isin(set(map(str, ids)))]
