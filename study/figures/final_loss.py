"""The final held-out loss of each run, by rule, rank and learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd

from study.analysis.losses import Tried, best_tried, common_rates
from study.figures.selection import Absent, Family, Rule, Tables, families, per_step
from study.vocabulary.optimizers import of_family
from study.vocabulary.quantities import METRICS
from study.vocabulary.statuses import BROKEN, DONE

METRIC = "eval_loss"
LABEL = (f"final {METRICS[METRIC].label}", f"({METRICS[METRIC].unit})")
"""The y axis: quantity and unit."""


@dataclass(frozen=True)
class Sweep:
    """A family whose learning rates may differ.

    - ``cells``: one row per run that has ended: rule, rank, lr, gamma, seed and loss (NaN if it
      diverged or got stuck);
    - ``start``: the held-out loss before training, NaN if it was not evaluated.
    """

    family: Family
    cells: pd.DataFrame
    start: float

    @property
    def rates(self) -> list[float]:
        return sorted(set(self.cells["lr"]))

    @property
    def power_of_gamma(self) -> int:
        """The power of gamma that a lazy step is proportional to: 2 under SGD, 1 if sign-like."""
        optimizer = str(self.family.keys.get("optimizer"))
        return 2 if optimizer in of_family("linear") else 1

    def of(self, rule: Rule) -> pd.DataFrame:
        return self.cells[self.cells["rule"] == rule]

    def means(self, rule: Rule, rank: float) -> pd.DataFrame:
        """By learning rate: mean, lowest and highest loss over seeds; ``whole``: none diverged."""
        cells = self.of(rule)
        by = cells[cells["rank"] == rank].groupby("lr")["loss"]
        whole = by.apply(lambda loss: bool(np.isfinite(loss).all()))
        return pd.DataFrame({"mean": by.mean(), "low": by.min(), "high": by.max(), "whole": whole})

    def best(self, rule: Rule, rank: float) -> Tried:
        """The best learning rate of a rank in the mean over seeds.

        It is among the rates that all ranks share, as in the table ``losses``, or among the rank's
        own (:meth:`has_own_rates`). NaN if a seed diverged at every rate, or if there are fewer
        than two rates.
        """
        cells = self.of(rule)
        own = cells[cells["rank"] == rank]
        rates = common_rates(own if self.has_own_rates(rule) else cells)
        return best_tried(own, rates if len(rates) > 1 else [])

    def has_own_rates(self, rule: Rule) -> bool:
        """Whether each of several ranks has rates of its own (:mod:`study.config.compose`): those
        of no rank contain those of another. In an interrupted sweep they do.
        """
        rates = self.of(rule).groupby("rank")["lr"].agg(frozenset).tolist()
        return len(rates) > 1 and not any(a <= b for a, b in permutations(rates, 2))


def sweeps(tables: Tables, free: Sequence[str] = ("lr",)) -> list[Sweep]:
    """The settings of a study with the final held-out loss of their runs.

    ``free``: the columns of ``cells`` that differ within a setting.

    Raises :class:`Absent` if no run has one.
    """
    cells = tables.cells
    heldout = per_step(cells, tables.metrics, METRIC) if len(cells) else pd.DataFrame()
    if heldout.empty:
        raise Absent("no held-out loss in the tables")
    cells = cells.assign(cell_id=cells["cell_id"].astype(str))
    ended = cells["status"].isin(DONE)
    last = heldout.sort_values("step").groupby("cell_id").last()
    # A run that was evaluated only before training has no final loss.
    final = last.loc[last["step"] > 0, "value"]
    first = heldout[heldout["step"] == 0]
    found = []
    for family in families(cells.drop(columns=list(free))):
        own = family.cells[ended.reindex(family.cells.index)]
        own = own.assign(
            **{name: cells.loc[own.index, name].astype(float) for name in free},
            loss=own["cell_id"].map(final).astype(float),
        )
        broken = own["status"].isin(BROKEN)
        own["loss"] = own["loss"].where(~broken)
        own = own[np.isfinite(own["loss"]) | broken]
        if np.isfinite(own["loss"]).any():
            start = first.loc[first["cell_id"].isin(set(own["cell_id"])), "value"]
            found.append(Sweep(family, own, float(start.mean()) if len(start) else np.nan))
    if not found:
        raise Absent("no finished run with a held-out loss after its first step")
    return found
