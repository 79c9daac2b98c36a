"""The effect of rounding to bf16 on training."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.captions import span
from study.figures.over_training import FEWEST_EVALUATIONS
from study.figures.selection import Absent, Family, Tables, families, most_varied, per_step
from study.vocabulary.quantities import LOSS, METRICS

FLOAT32, USUAL, ONCE = "float32", "bf16, as usual", "bf16, rounded once"
LOOKS: dict[str, dict[str, Any]] = {
    FLOAT32: {"color": style.INK, "linewidth": 1.8, "zorder": 2},
    USUAL: {"color": "#d9730d", "linestyle": style.DASHED, "linewidth": 1.2, "zorder": 3},
    ONCE: {"color": "#2b6fc2", "linewidth": 0.8, "zorder": 4},
}
"""How a layer adds base and adapter, and the line of its losses. As usual, the base's output is
rounded before the sum. Rounded once: only the sum is."""
APART = ["precision", "contraction", "lr"]
"""The columns of ``cells`` in which the cells of a setting may differ."""


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
    shown, left_out = _settings(tables.cells, losses)
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


def _settings(cells: pd.DataFrame, losses: pd.DataFrame) -> tuple[list[Family], str]:
    """The settings of the cells in ``losses``, with the column ``form``, how a cell rounds; and a
    line on settings that are left out."""
    cells = cells[cells["cell_id"].isin(set(losses["cell_id"]))].astype({"cell_id": str})
    apart = cells.reindex(columns=APART)
    bf16 = apart["precision"] == "bf16"
    if not bf16.any():
        raise Absent("no loss in bf16 in the tables")
    once = bf16 & (apart["contraction"] == "concatenated")
    apart["form"] = np.select([once, bf16], [ONCE, USUAL], FLOAT32)
    found = families(cells.drop(columns=APART, errors="ignore"))
    whole = [replace(one, cells=one.cells.join(apart[["lr", "form"]])) for one in found]
    return most_varied([one for one in whole if (one.cells["form"] != FLOAT32).any()])


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
