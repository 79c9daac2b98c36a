"""Reasons to doubt a study's numbers, found in its tables. One function per caveat."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from study.analysis import lazy_ratios
from study.analysis.rates import INSIDE
from study.analysis.stable import first_to_read
from study.report.formatting import (
    cell_list,
    count_noun,
    distinct,
    first_of,
    percent,
    quantity_text,
)
from study.report.literal import UNREADABLE, Record
from study.store import StudyTables
from study.vocabulary.optimizers import label, of_family
from study.vocabulary.quantities import FORWARD_OUT, TRAIN
from study.vocabulary.statuses import STATUSES, end_step
from study.vocabulary.thresholds import (
    FEW_SEEDS,
    LAST_PREDICTED_STEP,
    LAZY_WITHIN,
    SEEDS_FOR_VERDICT,
    SIGN_LIKE_FROM,
)

REGIMES_DIFFER = 0.05
"""The ranks span two regimes if p* over them differs from its limit by more than this."""
SHORT = 100
"""Runs with fewer steps than this end early in training."""


def caveats(tables: StudyTables, records: Sequence[Record]) -> list[str]:
    """One or two sentences each. Those that affect every number come first.

    ``records``: of all cells, those that can't be read among them.
    """
    of_tables = (
        _few_seeds,
        _unfinished,
        _large_steps,
        _small_beside_eps,
        _clipped,
        _two_regimes,
        _no_alignment,
        _best_rate_at_edge,
        _short,
    )
    of_records = (_other_weights, _several_commits, _uncommitted, _several_devices)
    return [
        *_unreadable(records),
        *(line for caveat in of_tables for line in caveat(tables)),
        *(line for caveat in of_records for line in caveat(records)),
    ]


def _unreadable(records: Sequence[Record]) -> Iterator[str]:
    damaged = [record for record in records if record.get("status") == UNREADABLE]
    if damaged:
        reasons = [f"{record.get('cell_id')}: {record.get('error')}" for record in damaged]
        yield (
            f"**{count_noun(len(damaged), 'cell')} unreadable** ({first_of(reasons)}). No number "
            "here contains them. `study check` lists the damage, and a sweep trains them afresh."
        )


def _few_seeds(tables: StudyTables) -> Iterator[str]:
    units = [name for name in ("seed", "data_seed") if name in tables.cells]
    seeds = len(tables.cells[units].drop_duplicates())
    if seeds == 1:
        yield (
            "**One seed.** There are no verdicts. Brackets show how straight the line is, not how "
            "much another seed would differ."
        )
    elif seeds < SEEDS_FOR_VERDICT:
        yield f"**{seeds} seeds.** A verdict needs at least {SEEDS_FOR_VERDICT}."
    elif seeds < FEW_SEEDS:
        yield (
            f"**{seeds} seeds.** Intervals over fewer than {FEW_SEEDS} seeds are too wide to rely "
            "on."
        )


def _unfinished(tables: StudyTables) -> Iterator[str]:
    for status, about in STATUSES.items():
        cells = tables.cells[tables.cells["status"] == status]
        if about.fits and len(cells):
            names = _ends(cells) if about.ended_at else cell_list(cells)
            yield f"**{count_noun(len(cells), 'cell')} {status}** ({names}). {about.fits}"


def _large_steps(tables: StudyTables) -> Iterator[str]:
    measured = "loss_after" in tables.metrics
    ratios = lazy_ratios(tables.metrics, tables.probes) if measured else pd.DataFrame()
    if ratios.empty:
        yield (
            "**Step size not checked.** The loss after an update was not recorded, so predictions "
            "assume that steps are small."
        )
        return
    ends = {str(row["cell_id"]): end_step(row) for row in tables.cells.to_dict("records")}
    ratios = ratios[ratios["step"] < ratios["cell_id"].map(ends)]
    off = ratios[(ratios["ratio"] - 1).abs() > LAZY_WITHIN]
    if off.empty:
        return
    worst = off.iloc[int((off["ratio"] - 1).abs().argmax())]
    yield (
        f"**Steps too large for the linear theory.** At {len(off)} of {len(ratios)} probed "
        f"updates ({cell_list(_of_ids(tables, off['cell_id']))}) the loss change differs from the "
        f"linear prediction by more than {percent(LAZY_WITHIN)}; at worst the loss changed by "
        f"{percent(worst['ratio'])} of the predicted amount "
        f"({cell_list(_of_ids(tables, [worst['cell_id']]))}, step {worst['step']:.0f}). From such "
        "a step on, the cell's rule has no predictions."
    )


def _small_beside_eps(tables: StudyTables) -> Iterator[str]:
    eps = tables.cells.get("eps", pd.Series(dtype=float)).astype(float)
    if not (eps > 0).any():
        return
    eps_of = pd.Series(eps.to_numpy(), index=tables.cells["cell_id"].astype(str))
    for factor in ("A", "B"):
        rows = tables.probes[
            (tables.probes["site"] == f"{factor}_grad")
            & (tables.probes["batch"] == TRAIN)
            & (tables.probes["rms"] > 0)
        ]
        if rows.empty:
            continue
        cell = rows["cell_id"].astype(str)
        ratio = (rows["rms"] / cell.map(eps_of)).groupby([cell, rows["step"]]).median()
        low = ratio[ratio < SIGN_LIKE_FROM]
        if low.empty:
            continue
        cells = _of_ids(tables, low.index.get_level_values(0))
        worst, step = low.index[int(low.argmin())]
        yield (
            f"**{_optimizers(cells)}'s eps affects the updates of {factor}.** In "
            f"{count_noun(len(cells), 'cell')} ({cell_list(cells)}) the median layer's rms "
            f"gradient is below {SIGN_LIKE_FROM:g} eps, down to {low.min():.1f} eps "
            f"({cell_list(_of_ids(tables, [worst]))}, step {step}). These updates are not fully "
            "sign-like."
        )


def _clipped(tables: StudyTables) -> Iterator[str]:
    if "clip_factor" not in tables.metrics:
        return
    factors = tables.metrics.dropna(subset=["clip_factor"])
    clipped = factors[factors["clip_factor"] < 1]
    if clipped.empty:
        return
    cells = _of_ids(tables, clipped["cell_id"])
    line = f"**Clipping.** {len(clipped)} of {len(factors)} gradients were clipped"
    line += f" ({cell_list(cells)})."
    linear = cells[cells["optimizer"].isin(of_family("linear"))]
    if len(linear):
        line += f" Clipping changes the exponents of {_optimizers(linear)}; a step with some"
        line += " cells clipped and others not has no prediction."
    yield line


def _two_regimes(tables: StudyTables) -> Iterator[str]:
    stable = first_to_read(tables.stable)
    if stable.empty or "limit" not in stable:
        return
    bent = stable[(stable["predicted"] - stable["limit"]).abs() > REGIMES_DIFFER]
    if bent.empty:
        return
    pairs = dict.fromkeys(zip(bent["site"].astype(str), bent["stat"].astype(str), strict=True))
    names = "; ".join(quantity_text(*pair) for pair in pairs)
    low, high = bent["rank_min"].min(), bent["rank_max"].max()
    yield (
        f"**These ranks span two regimes.** Between ranks {low:g} and {high:g} the scaling law of "
        f"these quantities changes: {names}. Their exponents, p\\* and theory are for the measured "
        "ranks, not for the limit."
    )


def _no_alignment(tables: StudyTables) -> Iterator[str]:
    site = FORWARD_OUT.site
    updated = tables.probes["step"].between(1, LAST_PREDICTED_STEP)
    out = tables.probes[(tables.probes["site"] == site) & updated]
    names = [name for name in ("r_align", "r_sign") if name in out]
    if len(out) and not (names and out[names].notna().any(axis=None)):
        yield (
            f"**Alignment not recorded.** Without it {site} has no prediction: train with "
            "`probes.stats=[all,r_align,r_sign]`."
        )


def _best_rate_at_edge(tables: StudyTables) -> Iterator[str]:
    if tables.rates.empty:
        return
    edges = tables.rates[tables.rates["edge"] != INSIDE]
    if len(edges):
        ends = " or ".join(sorted(set(edges["edge"])))
        yield (
            f"**Best learning rate at the edge of the grid.** {len(edges)} of {len(tables.rates)} "
            f"best rates are the {ends} rate tried, so the true best may lie outside. The "
            "exponent of the best rate leaves them out."
        )


def _short(tables: StudyTables) -> Iterator[str]:
    if "steps" not in tables.cells or tables.losses.empty:
        return
    steps = int(tables.cells["steps"].max())
    if steps < SHORT:
        yield f"**Short runs.** After {steps} steps, a final loss is from early in training."


def _other_weights(records: Sequence[Record]) -> Iterator[str]:
    notes = (f"{r.get('model')}: {r['model_note']}" for r in records if r.get("model_note"))
    for note in dict.fromkeys(notes):
        yield f"**The base is not the published weights.** {note}."


def _several_commits(records: Sequence[Record]) -> Iterator[str]:
    commits = {git["commit"] for r in records if (git := r.get("git") or {}).get("commit")}
    if len(commits) > 1:
        yield f"**Several code versions.** Cells ran at commits {', '.join(sorted(commits))}."


def _uncommitted(records: Sequence[Record]) -> Iterator[str]:
    if any((r.get("git") or {}).get("dirty") for r in records):
        yield "**Uncommitted changes.** Some cells ran with code that is in no commit."


def _several_devices(records: Sequence[Record]) -> Iterator[str]:
    devices = {str(r["device_name"]) for r in records if r.get("device_name")}
    if len(devices) > 1:
        yield f"**Several devices.** Cells ran on {', '.join(sorted(devices))}."


def _of_ids(tables: StudyTables, ids: Any) -> pd.DataFrame:
    """The rows of ``cells`` with these ids."""
    return tables.cells[tables.cells["cell_id"].astype(str).isin(set(map(str, ids)))]


def _optimizers(cells: pd.DataFrame) -> str:
    return distinct(label(str(name)) for name in cells["optimizer"])


def _ends(cells: pd.DataFrame) -> str:
    """``rsLoRA r = 64 at lr 0.1, step 3, 5``: broken cells by rank, with the step of their end."""
    steps: dict[str, set[float]] = {}
    for place in range(len(cells)):
        cell = cells.iloc[[place]]
        name = f"{cell_list(cell)} at lr {cell['lr'].item():g}"
        steps.setdefault(name, set()).add(end_step(cell.to_dict("records")[0]))
    parts = [
        f"{name}, step {', '.join(f'{step:g}' for step in sorted(found))}"
        for name, found in steps.items()
    ]
    return first_of(parts)
