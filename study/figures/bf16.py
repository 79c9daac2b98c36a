"""The effect of rounding to bf16 on an adapter: on its output in each layer, and on training."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.captions import on_batch, span
from study.figures.over_training import FEWEST_EVALUATIONS
from study.figures.selection import (
    Absent,
    DrawnRule,
    Family,
    Tables,
    families,
    most_varied,
    per_step,
)
from study.theory.rounding import GAUSSIAN, swallowed
from study.vocabulary.quantities import FORWARD_OUT, LOSS, METRICS, TRAIN

FLOAT32, USUAL, ONCE = "float32", "bf16, as usual", "bf16, rounded once"
LOOKS: dict[str, dict[str, Any]] = {
    FLOAT32: {"color": style.INK, "linewidth": 1.8, "zorder": 2},
    USUAL: {"color": "#d9730d", "linestyle": style.DASHED, "linewidth": 1.2, "zorder": 3},
    ONCE: {"color": "#2b6fc2", "linewidth": 0.8, "zorder": 4},
}
"""How a layer adds base and adapter, and the line of its losses. As usual, the base's output is
rounded before the sum. Rounded once: only the sum is."""
BINS = 20
APART = ["precision", "contraction", "lr"]
"""The columns of ``cells`` in which the cells of a setting may differ."""


@style.paper()
def lost_in_bf16(tables: Tables) -> Figure:
    """The share of the adapter's output that a bf16 layer loses by rounding, against the share that
    theory expects. Lines are medians over layers, bands 90 % of them.

    Theory (dashed) is for a layer that adds the adapter's output to a rounded output. It uses the
    sizes of both, as if both were Gaussian. A layer that rounds only the sum should lose nothing.
    The step is the first at which the adapters have an output.
    """
    lost = _lost(tables.probes)
    shown, left_out = _settings(tables.cells, lost, "layer with swallowed")
    forms = [f for f in LOOKS if any((family.cells["form"] == f).any() for family in shown)]
    page, grid = style.panels(shown, len(forms), ratio=0.45 * max(2, len(forms)), sharex=True)
    beside = sorted({rule for family in shown for rule in family.rules})
    colours = {rule: style.look(rule, beside)["color"] for rule in beside}
    for panels, family in zip(grid, shown, strict=True):
        for ax, form in zip(panels, forms, strict=True):
            own = family.cells[family.cells["form"] == form].merge(lost)
            _draw_shares(ax, own, colours)
            ax.set_title(f"{form}: median {style.number(own['swallowed'].median())}", loc="left")
            ax.set_xlabel("expected, if the base is rounded first")
        style.y_axis(panels, "share lost", "of the adapter's output")
    style.legend(page, {style.name(rule): {"color": colours[rule]} for rule in beside})
    where = f"{lost['layer'].nunique()} layers at step {lost['step'].min()}, of every rank, rate "
    lines = "and seed. Lines: median; bands: 5th to 95th percentile."
    return style.finish(page, where + lines, on_batch(), left_out)


@style.paper()
def loss_in_bf16(tables: Tables) -> Figure:
    """Loss over training in float32, in bf16 as usual, and in bf16 with one rounding, at the
    highest rank.

    As usual, a layer adds the adapter's output to a rounded output. With one rounding, it adds both
    and then rounds. A row of panels per rule, a column for each of the three learning rates with
    most cells. The loss is the held-out one if it was evaluated at three steps or more, else that
    of training.
    """
    losses, metric = per_step(tables, "eval_loss"), METRICS["eval_loss"]
    if losses["step"].nunique() < FEWEST_EVALUATIONS:
        losses, metric = per_step(tables, LOSS), METRICS[LOSS]
    shown, left_out = _settings(tables.cells, losses, "loss in bf16")
    rules = sorted({rule for family in shown for rule in family.rules})
    cells_at = Counter(sorted(rate for family in shown for rate in family.cells["lr"]))
    rates = sorted(rate for rate, _ in cells_at.most_common(3))
    size: dict[str, Any] = {"lines": len(rules), "ratio": 0.33 * max(2, len(rates)), "sharex": True}
    page, grid = style.panels(shown, len(rates), **size)
    seeds: set[int] = set()
    for part, family in zip(grid, shown, strict=True):
        for panels, rule in zip(np.atleast_2d(part), rules, strict=True):
            for ax, rate in zip(panels, rates, strict=True):
                one = {"rank": family.ranks[-1], "rule": rule, "lr": rate}
                cells = family.cells[(family.cells[list(one)] == pd.Series(one)).all(axis=1)]
                seeds.add(_draw_losses(ax, cells, losses))
                ax.set_title(f"{style.name(rule)}, lr {rate:g}")
            style.y_axis(panels, metric.label, f"({metric.unit})")
        for ax in panels:  # the lowest
            style.step_axis(ax, losses["step"].to_numpy())
    drawn = {form for family in shown for form in family.cells["form"]}
    style.legend(page, {form: look for form, look in LOOKS.items() if form in drawn})
    ranks = dict.fromkeys(f"{family.ranks[-1]:.0f}" for family in shown)
    mean = ""
    if max(seeds) > 1:
        mean = f"Lines: mean over {span(seeds - {0})} seeds, with the same batches."
    return style.finish(page, f"Rank {' or '.join(ranks)}.", mean, left_out)


def _lost(probes: pd.DataFrame) -> pd.DataFrame:
    """By layer and cell: the share lost at the first step that has any, and the share expected."""
    keys = ["cell_id", "step", "layer"]
    rows = probes.reindex(columns=[*keys, "site", "batch", "mean_abs", "rms", "swallowed"])
    rows = rows[rows["batch"] == TRAIN].astype({"cell_id": str, "layer": str})
    lost = rows[(rows["site"] == FORWARD_OUT.site) & rows["swallowed"].notna()]
    lost = lost[lost["step"] == lost["step"].min()].drop(columns="mean_abs")
    found = lost.merge(rows.loc[rows["site"] == "layer_out", [*keys, "mean_abs"]], on=keys)
    return found.assign(expected=swallowed(found["mean_abs"] * GAUSSIAN, found["rms"]))


def _settings(cells: pd.DataFrame, series: pd.DataFrame, what: str) -> tuple[list[Family], str]:
    """The settings of the cells in ``series``, with the column ``form``, how a cell rounds, and
    what is left out."""
    cells = cells[cells["cell_id"].isin(set(series["cell_id"]))].astype({"cell_id": str})
    apart = cells.reindex(columns=APART)
    bf16 = apart["precision"] == "bf16"
    if not bf16.any():
        raise Absent(f"no {what} in the tables")
    once = bf16 & (apart["contraction"] == "concatenated")
    apart["form"] = np.select([once, bf16], [ONCE, USUAL], FLOAT32)
    found = families(cells.drop(columns=APART, errors="ignore"))
    whole = [replace(one, cells=one.cells.join(apart[["lr", "form"]])) for one in found]
    return most_varied([one for one in whole if (one.cells["form"] != FLOAT32).any()])


def _draw_shares(ax: Axes, rows: pd.DataFrame, colours: dict[DrawnRule, Any]) -> None:
    """By rule the median share lost, and a band of 90 % of the layers, by the share expected."""
    ax.plot([0, 1], [0, 1], color=style.FAINT, linestyle=style.DASHED, zorder=1, gid="expected")
    groups: Any = rows.groupby("rule")
    for rule, own in groups:
        colour, parts = colours[rule], own.groupby((BINS * own["expected"]).round())
        low, middle, high = (parts["swallowed"].quantile(q) for q in (0.05, 0.5, 0.95))
        x = parts["expected"].median()
        ax.plot(x, middle, color=colour, gid=f"line {style.gid(rule)}")
        style.band(ax, x, low, high, colour, f"band {style.gid(rule)}")


def _draw_losses(ax: Axes, cells: pd.DataFrame, losses: pd.DataFrame) -> int:
    """The mean of each form over the seeds that every form has, at the steps that all have. gid:
    ``curve <form>``. Returns the number of these seeds."""
    forms = cells.groupby("seed")["form"].nunique()
    shared = forms.index[forms == cells["form"].nunique()]
    for form, own in cells[cells["seed"].isin(shared)].groupby("form"):
        rows = losses[losses["cell_id"].isin(set(own["cell_id"]))]
        mean = rows.pivot(index="step", columns="cell_id", values="value").dropna().mean(axis=1)
        ax.plot(mean.index, mean, gid=f"curve {form}", **LOOKS[str(form)])
    return len(shared)
