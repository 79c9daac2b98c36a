"""The final held-out loss of each run, the best learning rate tried, and the cost of the adapters.

Learning rates and alphas are kept apart here. Unfinished cells have no row. A run that diverged or
got stuck has a row with a loss of NaN: it bounds the learning rates that work.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_labels, numbered, seed_numbers
from study.vocabulary.quantities import MODEL_WIDE
from study.vocabulary.statuses import BROKEN, DONE

NOT_A_SETTING = ("scaling", "exponent_p", "lr", "alpha")
"""Columns compared within a setting: the rule, and what determines the size of a step."""

INSIDE, LOWEST, HIGHEST = "", "lowest", "highest"
"""Values of ``edge``: whether the best of the tried rates is the lowest or the highest. If it is,
the true best rate may lie outside."""


class Tried(NamedTuple):
    """A learning rate that was tried, the mean final loss over seeds there, and its ``edge``."""

    lr: float
    loss: float
    edge: str


def final_losses(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """One row per finished cell of finite rank:

    - ``setting``: a number; cells of one setting differ in rule, rank, seed, learning rate and
      alpha only;
    - the columns of the curve, ``rank``, ``seed``, ``gamma``;
    - ``loss``: the last held-out loss after the first step, in nats per token;
    - ``parameters``: the number of parameters of the adapters;
    - ``flops``: their cost per trained token (factored form, ``6 R (D + O)`` a layer). Both are NaN
      if the probes do not record the sizes of the layers.
    """
    finished = cells["status"].isin(DONE) & np.isfinite(cells["rank"].to_numpy(float))
    cells = cells[finished].reset_index(drop=True)
    labels = curve_labels(cells)
    ids = cells["cell_id"].astype(str)
    broken = cells["status"].isin(BROKEN)
    loss = ids.map(last_loss(metrics)).astype(float).where(~broken)
    rank = cells["rank"].to_numpy(float)
    parameters = rank * ids.map(fans(probes)).astype(float)
    table = labels.assign(
        cell_id=ids,
        setting=numbered(labels, [str(name) for name in labels if name not in NOT_A_SETTING]),
        rank=rank,
        seed=seed_numbers(cells),
        gamma=cells["gamma"].to_numpy(float),
        loss=loss,
        parameters=parameters,
        flops=6 * parameters,
    )
    return table[np.isfinite(loss) | broken].reset_index(drop=True)


def common_rates(runs: pd.DataFrame) -> list[float]:
    """The learning rates that every finite rank and every seed of one rule was run at, ascending.

    ``runs`` has ``rank``, ``seed`` and ``lr``. Only these rates compare ranks: in a sweep that was
    interrupted, some ranks lack the rates that are best elsewhere. A run that diverged counts.
    """
    runs = runs.loc[np.isfinite(runs["rank"].astype(float)), ["rank", "seed", "lr"]]
    runs = runs.drop_duplicates()
    places = len(runs[["rank", "seed"]].drop_duplicates())
    count = runs.groupby("lr").size()
    return sorted(float(rate) for rate in count.index[count == places])


def rates_of_a_rank(runs: pd.DataFrame) -> list[float]:
    """The learning rates that every seed of one rule and rank was run at, ascending.

    ``runs`` has ``seed`` and ``lr``. A run that diverged counts.
    """
    runs = runs[["seed", "lr"]].drop_duplicates()
    count = runs.groupby("lr").size()
    return sorted(float(rate) for rate in count.index[count == runs["seed"].nunique()])


def best_tried(runs: pd.DataFrame, rates: Sequence[float]) -> Tried:
    """The one of ``rates`` with the lowest mean loss over seeds, for the runs of a rule and rank.

    ``runs`` has ``lr`` and ``loss``; ``rates`` are those of :func:`common_rates`. A rate at which a
    seed diverged is never the best, but it is part of the grid. NaN if a seed diverged at every
    rate, or if none of the rates was tried.
    """
    by = runs[runs["lr"].isin(list(rates))].groupby("lr")["loss"]
    mean = by.mean().where(by.count() == by.size())
    if not mean.notna().any():
        return Tried(np.nan, np.nan, INSIDE)
    place = int(np.nanargmin(mean.to_numpy(float)))
    edge = LOWEST if place == 0 else HIGHEST if place == len(mean) - 1 else INSIDE
    return Tried(float(mean.index[place]), float(mean.iloc[place]), edge)


def fixed_rate(runs: pd.DataFrame) -> float:
    """The best rate at the lowest rank, by the mean loss over rules and seeds.

    Candidates are the rates that all rules and seeds were run at, without divergence. The most
    common rate if there is no candidate.
    """
    lowest = runs[runs["rank"] == runs["rank"].min()].groupby("lr")["loss"]
    shared = lowest.size() == lowest.size().max()
    mean = lowest.mean().where(shared & (lowest.count() == lowest.size()))
    return float(mean.idxmin() if mean.notna().any() else runs["lr"].mode().iloc[0])


def last_loss(metrics: pd.DataFrame) -> "pd.Series[float]":
    """By cell, the last held-out loss after the first step."""
    evaluated = metrics.reindex(columns=["cell_id", "step", "eval_loss"]).dropna()
    evaluated = evaluated[evaluated["step"] > 0].sort_values("step")
    return evaluated.groupby(evaluated["cell_id"].astype(str))["eval_loss"].last()


def fans(probes: pd.DataFrame) -> "pd.Series[float]":
    """By cell, the sum of D + O over its layers; empty if the sizes were not recorded.

    An adapter of rank R has R times as many parameters, and costs 6 R times as many FLOPs per
    trained token.
    """
    if "d_in" not in probes or probes["d_in"].isna().all():
        return pd.Series(dtype=float)
    layers = probes.loc[probes["layer"] != MODEL_WIDE, ["cell_id", "layer", "d_in", "d_out"]]
    layers = layers.drop_duplicates(["cell_id", "layer"])
    of_cell = (layers["d_in"] + layers["d_out"]).groupby(layers["cell_id"].astype(str))
    return of_cell.sum(min_count=1)
