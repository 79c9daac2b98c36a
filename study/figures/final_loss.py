"""The final held-out loss of each run, by rule, rank and learning rate."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from study.analysis.losses import Tried, best_tried, common_rates
from study.figures import style
from study.figures.selection import Absent, Family, Rule, Tables, families, per_step
from study.vocabulary.quantities import METRICS
from study.vocabulary.statuses import BROKEN, DONE

METRIC = METRICS["eval_loss"]
LABEL = (f"final {METRIC.label}", f"({METRIC.unit})")
"""The y axis: quantity and unit."""
ABOVE_START = 0.15
"""How far the y axis reaches above the loss before training, as a share of the best decrease."""


@dataclass(frozen=True, eq=False)
class Sweep(Family):
    """A family whose learning rates may differ, with its runs that have ended.

    - ``cells``: one row per run: rule, rank, lr, gamma, seed and loss (NaN if it diverged or got
      stuck);
    - ``start``: the held-out loss before training, NaN if it was not evaluated.
    """

    start: float

    @property
    def rates(self) -> list[float]:
        return sorted(set(self.cells["lr"]))

    @property
    def y_range(self) -> tuple[float, float]:
        """From the best run to a little above the loss before training."""
        best, high = float(self.cells["loss"].min()), float(self.cells["loss"].max())
        if self.start > best:
            high = min(high, self.start + ABOVE_START * (self.start - best))
        margin = 0.06 * ((high - best) or 0.1 * abs(best) or 1.0)
        return best - margin, high + margin

    def of(self, rule: Rule) -> pd.DataFrame:
        return self.cells[self.cells["rule"] == rule]

    def best(self, rule: Rule, rank: float, shared: bool = False) -> Tried:
        """The best learning rate of a rank in the mean over seeds.

        It is among the rank's own rates. If ``shared``, it is among those that all ranks share, as
        in the table ``losses``, unless each rank has others (:meth:`has_own_rates`). NaN if a seed
        diverged at every rate, or if there are fewer than two rates.
        """
        cells = self.of(rule)
        own = cells[cells["rank"] == rank]
        rates = common_rates(cells if shared and not self.has_own_rates(rule) else own)
        return best_tried(own, rates if len(rates) > 1 else [])

    def has_own_rates(self, rule: Rule) -> bool:
        """Whether each of several ranks has its own rates (:mod:`study.config.compose`): those of
        no rank contain those of another. In an interrupted sweep they do.
        """
        rates = self.of(rule).groupby("rank")["lr"].agg(frozenset).tolist()
        return len(rates) > 1 and not any(a <= b for a, b in permutations(rates, 2))


def draw_line(
    ax: Axes,
    cells: pd.DataFrame,
    by: str,
    top: float,
    name: str,
    who: str,
    factor: float = 1.0,
    **look: Any,
) -> tuple["pd.Series[float]", bool]:
    """The mean loss over seeds against ``factor`` times a column of ``cells``, where none diverged.

    A band shows the range over seeds, and ``name`` is at the end. Crosses are where a seed
    diverged, or the mean lies above the panel, whose highest loss is ``top``. Returns the means by
    x, and whether there is any cross. gids: ``line|band|cross <who>``; ``label <name>``.
    """
    loss = cells.assign(x=factor * cells[by]).groupby("x")["loss"]
    means = loss.agg(["mean", "min", "max"])
    whole = loss.count() == loss.size()
    drawn, colour = means[whole], look["color"]
    x, mean = drawn.index.to_numpy(float), drawn["mean"]
    ax.plot(x, mean, gid=f"line {who}", **look, **style.DOTS)
    style.band(ax, x, drawn["min"], drawn["max"], colour, f"band {who}", alpha=0.12)
    if len(x):
        style.label_end(ax, min(float(mean.iloc[-1]), top), name, colour)
    lost = means.index[~whole | (means["mean"] > top)].to_numpy(float)
    return mean, style.crosses(ax, lost, colour, f"cross {who}")


def sweeps(tables: Tables, *free: str) -> list[Sweep]:
    """The settings of a study with the final held-out loss of their runs.

    ``free``: the columns of ``cells`` that differ within a setting.
    """
    cells = tables.cells
    heldout = per_step(tables, "eval_loss") if len(cells) else pd.DataFrame()
    if heldout.empty:
        raise Absent("no held-out loss in the tables")
    last = heldout.sort_values("step").groupby("cell_id").last()
    # A run that was evaluated only before training has no final loss.
    final = last.loc[last["step"] > 0, "value"]
    first = heldout[heldout["step"] == 0].set_index("cell_id")["value"]
    found = []
    for family in families(cells.drop(columns=[*free])):
        own = family.cells.join(cells[[*free]].astype(float))
        own = own[own["status"].isin(DONE)].astype({"cell_id": str})
        broken = own["status"].isin(BROKEN)
        own["loss"] = own["cell_id"].map(final).astype(float).where(~broken)
        own = own[np.isfinite(own["loss"]) | broken]
        if np.isfinite(own["loss"]).any():
            start = float(own["cell_id"].map(first).mean())
            found.append(Sweep(family.words, family.keys, own, start))
    if not found:
        raise Absent("no finished run with a held-out loss after its first step")
    return found
