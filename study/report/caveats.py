"""What to hold against a study's numbers, in plain words. Each function looks at one thing and says nothing if all is
well; nothing is said that the tables do not show."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from study.analysis import lazy_ratios
from study.analysis.rates import INSIDE
from study.analysis.stable import first_to_read
from study.store import StudyTables
from study.vocabulary.optimizers import of_family
from study.vocabulary.thresholds import FEW_SEEDS, LAZY_WITHIN, SIGN_LIKE_FROM

Record = Mapping[str, Any]

BENT = 0.05
"""How far p* over the ranks measured may lie from its limit before the bend is worth a word."""
SHORT = 100
"""Steps under which a final loss is called an early one."""


def caveats(tables: StudyTables, records: Sequence[Record]) -> list[str]:
    """One sentence or two each, the ones that touch every number first."""
    of_tables: tuple[Callable[[StudyTables], list[str]], ...] = (
        _seeds,
        _unfinished,
        _not_lazy,
        _small_beside_eps,
        _clipped,
        _astride,
        _no_alignments,
        _edges,
        _short,
    )
    said = [line for look in of_tables for line in look(tables)]
    return [*said, *_base(records), *_code(records)]


def _seeds(tables: StudyTables) -> list[str]:
    units = [name for name in ("seed", "data_seed") if name in tables.cells]
    seeds = len(tables.cells[units].drop_duplicates())
    if seeds == 1:
        return [
            "**One seed.** Intervals are over ranks: they say how straight a line is, and nothing about another seed."
        ]
    if seeds < FEW_SEEDS:
        return [
            f"**{seeds} seeds.** Intervals are over seeds and, with fewer than {FEW_SEEDS}, wide or lucky."
        ]
    return []


def _unfinished(tables: StudyTables) -> list[str]:
    found = []
    for status, meaning in (
        ("diverged", "left out of every fit from the step at which it stopped being finite"),
        ("failed", "fitted as far as it got"),
        ("running", "fitted as far as it has got"),
        ("interrupted", "fitted as far as it got; the same `study train` line goes on"),
    ):
        cells = tables.cells[tables.cells["status"] == status]
        if len(cells):
            found.append(f"**{_count(len(cells), 'cell')} {status}**, {meaning}: {_cells(cells)}.")
    return found


def _not_lazy(tables: StudyTables) -> list[str]:
    ratios = (
        lazy_ratios(tables.metrics, tables.probes)
        if "loss_after" in tables.metrics
        else pd.DataFrame()
    )
    if ratios.empty:
        return [
            "**Laziness unknown.** The loss after an update was not recorded: predictions are taken on trust."
        ]
    off = ratios[(ratios["ratio"] - 1).abs() > LAZY_WITHIN]
    if off.empty:
        return []
    cells = tables.cells[tables.cells["cell_id"].astype(str).isin(set(off["cell_id"]))]
    worst = off.iloc[int((off["ratio"] - 1).abs().argmax())]
    where = tables.cells[tables.cells["cell_id"].astype(str) == worst["cell_id"]]
    return [
        f"**Not lazy.** At {len(off)} of {len(ratios)} probed updates the loss changed by more than "
        f"{LAZY_WITHIN:.0%} less or more than its linearisation says ({_cells(cells)}; the worst, {_cells(where)} at "
        f"step {worst['step']:.0f}: {worst['ratio']:.2f} of it). A rule's quantities have no prediction from there on."
    ]


def _small_beside_eps(tables: StudyTables) -> list[str]:
    eps = tables.cells.get("eps", pd.Series(dtype=float)).astype(float)
    if not (eps > 0).any():
        return []
    found = []
    by_cell = pd.Series(eps.to_numpy(), index=tables.cells["cell_id"].astype(str))
    for factor in ("A", "B"):
        rows = tables.probes[
            (tables.probes["site"] == f"{factor}_grad")
            & (tables.probes["batch"] == "train")
            & (tables.probes["rms"] > 0)
        ]
        if rows.empty:
            continue
        cell = rows["cell_id"].astype(str)
        ratio = (rows["rms"] / cell.map(by_cell)).groupby([cell, rows["step"]]).median()
        low = ratio[ratio < SIGN_LIKE_FROM]
        if len(low):
            cell_ids, steps = (low.index.get_level_values(level) for level in (0, 1))
            at, least = int(low.argmin()), float(low.min())
            cells = tables.cells[tables.cells["cell_id"].astype(str).isin(set(cell_ids))]
            where = tables.cells[tables.cells["cell_id"].astype(str) == cell_ids[at]]
            found.append(
                f"**eps matters to {factor}.** The median layer's rms(gradient of {factor}) is under {SIGN_LIKE_FROM:g} "
                f"eps in {_count(len(cells), 'cell')} ({_cells(cells)}), {least:.1f} eps at the least "
                f"({_cells(where)}, step {steps[at]}): the update there is not quite sign-like."
            )
    return found


def _clipped(tables: StudyTables) -> list[str]:
    if "clip_factor" not in tables.metrics:
        return []
    factors = tables.metrics.dropna(subset=["clip_factor"])
    clipped = factors[factors["clip_factor"] < 1]
    if clipped.empty:
        return []
    cells = tables.cells[
        tables.cells["cell_id"].astype(str).isin(set(clipped["cell_id"].astype(str)))
    ]
    line = (
        f"**Clipped.** {len(clipped)} of {len(factors)} gradients were clipped ({_cells(cells)})."
    )
    if cells["optimizer"].isin(of_family("linear")).any():
        line += " Under SGD clipping changes the exponents; where only some gradients were, nothing is predicted."
    return [line]


def _astride(tables: StudyTables) -> list[str]:
    stable = first_to_read(tables.stable)
    if stable.empty or "limit" not in stable:
        return []
    bent = stable[(stable["predicted"] - stable["limit"]).abs() > BENT]
    if bent.empty:
        return []
    sites = ", ".join(dict.fromkeys(bent["site"].astype(str)))
    low, high = bent["rank_min"].min(), bent["rank_max"].max()
    return [
        f"**Ranks astride a crossover.** From rank {low:g} to {high:g}, {sites} bend from one law to another: their "
        "exponents and p\\* are those of the ranks measured, and theory's beside them is for the same ranks."
    ]


def _no_alignments(tables: StudyTables) -> list[str]:
    out = tables.probes[
        (tables.probes["site"] == "adapter_out") & tables.probes["step"].between(1, 3)
    ]
    names = [name for name in ("r_align", "r_sign") if name in out]
    if out.empty or (names and out[names].notna().any(axis=None)):
        return []
    return [
        "**No alignments.** How inputs lie to the gradients was not recorded, so adapter_out has no prediction: "
        "train with `probes.stats=[all,r_align,r_sign]`."
    ]


def _edges(tables: StudyTables) -> list[str]:
    if tables.rates.empty:
        return []
    edges = tables.rates[tables.rates["edge"] != INSIDE]
    if edges.empty:
        return []
    ends = " and ".join(sorted(set(edges["edge"])))
    return [
        f"**Best learning rates at an edge.** {len(edges)} of {len(tables.rates)} are the {ends} rate tried: the true "
        "best may lie outside, and these are left out of the exponent of the best rate."
    ]


def _short(tables: StudyTables) -> list[str]:
    steps = int(tables.cells["steps"].max()) if "steps" in tables.cells else SHORT
    if steps >= SHORT or tables.losses.empty:
        return []
    return [f"**Short runs.** {steps} steps: a final loss here is an early one."]


def _base(records: Sequence[Record]) -> list[str]:
    notes = dict.fromkeys(
        f"{r['model']}: {r['model_note']}" for r in records if r.get("model_note")
    )
    return [f"**The base is not the published weights.** {note}." for note in notes]


def _code(records: Sequence[Record]) -> list[str]:
    found = []
    git = [r.get("git") or {} for r in records]
    commits = {g["commit"][:12] for g in git if g.get("commit")}
    if len(commits) > 1:
        found.append(
            f"**Several versions of the code.** Cells are from commits {', '.join(sorted(commits))}."
        )
    if any(g.get("dirty") for g in git):
        found.append("**Uncommitted changes.** Some cells are from code that no commit holds.")
    devices = {str(r.get("device_name")) for r in records if r.get("device_name")}
    if len(devices) > 1:
        found.append(f"**Several devices**: {', '.join(sorted(devices))}.")
    return found


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _cells(cells: pd.DataFrame) -> str:
    """Cells by what tells them apart at a glance: ``rslora r = 64, 256``; their optimizer too, if they have several."""
    several = cells["optimizer"].nunique() > 1
    rule = cells["scaling"].astype(str)
    if "exponent" in cells:
        rule = rule.where(cells["exponent"].isna(), "p = " + cells["exponent"].map("{:g}".format))
    if several:
        rule = cells["optimizer"].astype(str) + " " + rule
    parts = []
    for name, ranks in cells["rank"].groupby(rule, sort=False):
        parts.append(f"{name} r = {', '.join(f'{rank:g}' for rank in sorted(set(ranks)))}")
    return "; ".join(parts[:6]) + (f"; and {len(parts) - 6} more" if len(parts) > 6 else "")
