"""The held-out loss that each run ends with, by rule, rank and learning rate: what both figures of it read."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.figures.selection import Absent, Family, Rule, Tables, families, per_step
from study.vocabulary.optimizers import of_family


@dataclass(frozen=True)
class Sweep:
    """A family whose learning rates may differ, and a row per cell: rule, rank, lr, gamma, seed, loss.

    ``loss`` is NaN where the run diverged; runs that have not finished have no row. ``start`` is the held-out loss
    before any step (NaN where it was not evaluated).
    """

    family: Family
    cells: pd.DataFrame
    start: float

    @property
    def rates(self) -> list[float]:
        return sorted(set(self.cells["lr"]))

    @property
    def steps_in_gamma(self) -> int:
        """The power of gamma that one lazy step moves the adapter by: 2 under SGD, 1 under a sign-like rule."""
        optimizer = str(self.family.keys.get("optimizer"))
        return 2 if optimizer in of_family("linear") else 1

    def of(self, rule: Rule) -> pd.DataFrame:
        return self.cells[self.cells["rule"] == rule]

    def means(self, rule: Rule, rank: float) -> pd.DataFrame:
        """By learning rate: the mean, least and greatest loss over seeds, and ``whole``: no seed diverged there."""
        cells = self.of(rule)
        by = cells[cells["rank"] == rank].groupby("lr")["loss"]
        whole = by.apply(lambda loss: bool(np.isfinite(loss).all()))
        return pd.DataFrame({"mean": by.mean(), "low": by.min(), "high": by.max(), "whole": whole})

    def best(self, rule: Rule, rank: float) -> tuple[float, bool]:
        """The learning rate of the least mean loss, and whether it lies at an edge of those tried.

        A rate at which a seed diverged is not chosen, but it bounds the others: its neighbour is no edge. NaN where no
        rate is left.
        """
        means = self.means(rule, rank)
        whole = means.loc[means["whole"], "mean"]
        if whole.empty:
            return np.nan, False
        best = float(whole.idxmin())
        return best, best in (means.index[0], means.index[-1])


def sweeps(tables: Tables) -> list[Sweep]:
    """A study's settings with the final held-out loss of their runs. Raises :class:`Absent` where there is none."""
    heldout = (
        per_step(tables.cells, tables.metrics, "eval_loss") if len(tables.cells) else pd.DataFrame()
    )
    if heldout.empty:
        raise Absent("no held-out loss in the tables")
    cells = tables.cells.assign(cell_id=tables.cells["cell_id"].astype(str))
    ended = cells["status"].isin(["complete", "diverged"])
    last = heldout.sort_values("step").groupby("cell_id").last()
    # A run that was evaluated before its first step only has no final loss.
    final = last.loc[last["step"] > 0, "value"]
    first = heldout[heldout["step"] == 0]
    found = []
    for family in families(cells.drop(columns="lr")):
        own = family.cells[ended.reindex(family.cells.index)]
        own = own.assign(
            lr=cells.loc[own.index, "lr"].astype(float),
            loss=own["cell_id"].map(final).astype(float),
        )
        own.loc[own["status"] == "diverged", "loss"] = np.nan
        own = own[np.isfinite(own["loss"]) | (own["status"] == "diverged")]
        if np.isfinite(own["loss"]).any():
            start = first.loc[first["cell_id"].isin(set(own["cell_id"])), "value"]
            found.append(Sweep(family, own, float(start.mean()) if len(start) else np.nan))
    if not found:
        raise Absent("no finished run with a held-out loss after its first step")
    return found
