"""What adapters store: bits of ``data=random_strings``, against the parameters of the adapter; and
where a low rank falls behind on other data.

A string has 96 bits that nothing predicts. So a run has stored the bits of its strings less its
loss on them, in bits. The loss is that of the last pass, whose learning rate is close to 0: the end
of the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from study.analysis.advice import committed
from study.analysis.fits import interval_columns
from study.analysis.grouping import (
    CURVE_ID,
    RULE,
    curve_columns,
    curve_labels,
    distinguishing,
    groups,
    seed_numbers,
)
from study.analysis.losses import at_best_rates, base_losses, fans, final_losses
from study.theory import slope
from study.vocabulary.sources import BITS, KEY, RANDOM_STRINGS, STRING

if TYPE_CHECKING:
    from study.store import StudyTables

FULL = 0.8
"""A rank whose adapters stored more of the bits offered, in the mean over seeds, could have stored
more: it does not count. Nor does one whose loss is above that of random bytes."""
BEHIND = 0.05
"""A rank is behind if its loss is above that of the highest rank by this share of what that one has
learned at the end."""
EXPECTED = ("expected", "expected_low", "expected_high")
FLAT = 0.05
"""Adapters are flat if twice the steps add less than this share of what they stored."""
WINDOW = 1 / 16
"""Losses of single batches are noisy: they are means over this share of the steps."""


def stored_bits(tables: StudyTables) -> pd.DataFrame:
    """A row per complete cell of random strings: the columns of its curve, ``cell_id``, ``rank``,
    ``seed``, ``parameters``, ``offered`` and stored ``bits``, and ``passes`` over the strings.

    Bits are NaN if a record does not say how many supervised tokens a pass has, unless each byte is
    a token.
    """
    cells = tables.cells
    cells = cells[(cells["data"] == RANDOM_STRINGS) & (cells["status"] == "complete")]
    cells = cells.astype({"cell_id": str}).reset_index(drop=True)
    if cells.empty:
        return cells
    heldout = np.maximum(1, np.minimum(cells["max_samples"] // 10, cells["heldout"]))
    strings, sizes = cells["max_samples"] - heldout, fans(tables.probes)
    losses = tables.metrics.dropna(subset="loss").astype({"cell_id": str}).groupby("cell_id")
    tokens = losses["tokens"].last().reindex(cells["cell_id"]).to_numpy()
    per_step = (cells["batch_size"] * cells["accumulation"]).to_numpy()
    is_bytes = tokens == cells["steps_done"] * per_step * (KEY + 1 + STRING + 1)
    supervised = cells["supervised"].fillna((strings * (STRING + 1)).where(is_bytes))
    by_cell = {name: own.sort_values("step")["loss"].to_numpy() for name, own in losses}
    passes = np.ceil(strings / per_step).astype(int)
    last = [by_cell[name][-n:].mean() for name, n in zip(cells["cell_id"], passes, strict=True)]
    left = pd.Series(last) * supervised / np.log(2)
    return curve_labels(cells).assign(
        cell_id=cells["cell_id"],
        rank=cells["rank"].astype(float),
        seed=seed_numbers(cells),
        parameters=cells["rank"] * sizes.reindex(cells["cell_id"]).to_numpy(),
        offered=strings * STRING * BITS,
        bits=strings * STRING * BITS - left,
        passes=(cells["steps_done"] * per_step / strings).round(),
    )


def best_stored(tables: StudyTables) -> pd.DataFrame:
    """Of :func:`stored_bits`, the cells at the learning rate that stored most, in the mean over
    seeds: one for each setting and rank."""
    table = stored_bits(tables)
    if table.empty:
        return table
    table = table.dropna(subset="bits")
    same = [name for name in curve_columns(table) if name != "lr"]
    found = [at_best_rates(own.assign(lost=-own["bits"]), "lost") for own in groups(table, same)]
    return pd.concat(found) if found else table


def setting_columns(table: pd.DataFrame) -> list[str]:
    """The columns in which the settings of :func:`best_stored` differ: the rule and others, but not
    the strings offered."""
    names = distinguishing(table, curve_columns(table))
    names = [name for name in names if name not in ("max_samples", "lr", "steps")]
    rule = [name for name in RULE if table[name].nunique(dropna=False) > 1][:1]
    return [*rule, *names, *(["passes"] if table["passes"].nunique() > 1 else [])]


def capacity(tables: StudyTables) -> pd.DataFrame:
    """A row per setting with two ranks that are full, each at the learning rate that stored most;
    the settings of most seeds come first.

    - ``passes``, ``offered``: as in :func:`stored_bits`;
    - ``exponent``, ``ci_low``, ``ci_high``: the slope of log bits with log parameters, by seed;
    - ``per_parameter``, ``bits_low``, ``bits_high``: bits stored per parameter, mean over ranks;
    - ``flat``: whether twice the steps were run, and add less than :data:`FLAT` at each rank.
    """
    table = best_stored(tables)
    same = [name for name in curve_columns(table) if name != "lr"]
    rows = []
    for own in groups(table, same):
        mean = own.groupby("rank")["bits"].transform("mean")
        own = own[(mean > 0) & (mean < FULL * own["offered"])]
        if own["rank"].nunique() < 2:
            continue
        seeds = [one for _, one in own.groupby("seed") if one["rank"].nunique() > 1]
        each = [(one["bits"] / one["parameters"]).mean() for one in seeds]
        bits = interval_columns("per_parameter", each)
        slopes = [slope(one["bits"], one["parameters"]) for one in seeds]
        rows.append(
            own.iloc[0][[*same, CURVE_ID, "passes", "offered"]].to_dict()
            | {"bits_low": bits.pop("ci_low"), "bits_high": bits.pop("ci_high"), **bits}
            | interval_columns("exponent", slopes)
            | {"seeds": len(seeds), "rank_min": own["rank"].min(), "rank_max": own["rank"].max()}
            | {"flat": _is_flat(own, table, same)}
        )
    found = pd.DataFrame(rows)
    return found.sort_values("seeds", ascending=False, kind="stable") if rows else found


def _is_flat(own: pd.DataFrame, table: pd.DataFrame, same: Sequence[str]) -> bool:
    """Whether twice the steps of the runs ``own`` are in ``table``, and add little at each rank."""
    first = own.iloc[0]
    here = table["steps"] == 2 * first["steps"]
    for name in same:
        if name not in ("steps", CURVE_ID):
            here &= (table[name] == first[name]) | (table[name].isna() & pd.isna(first[name]))
    longer = table[here].groupby("rank")["bits"].mean()
    added = longer.reindex(own["rank"].unique()) / own.groupby("rank")["bits"].mean() - 1
    return bool((added < FLAT).all())


def departures(tables: StudyTables) -> pd.DataFrame:
    """Where the training loss of a rank falls behind that of the highest rank: a row per curve and
    lower rank. Each rank has the learning rate of its lowest final loss, in the mean over seeds.
    A curve has no row if it lacks losses of steps, or if its highest rank learned nothing.

    - ``step``: from here on the rank is :data:`BEHIND`; NaN if it is not at the end;
    - :data:`EXPECTED`, with its interval: from here on the highest rank has learned
      more bits than adapters with the parameters of this rank stored of random strings; NaN if it
      never has. Bits learned: what the loss has fallen, times the supervised tokens seen so far, of
      which those of a second pass do not count. Every token counts as supervised if no record says
      how many are;
    - ``parameters``, ``steps``, ``seeds``, ``highest``: the highest rank.
    """
    runs, sizes = final_losses(tables.cells, tables.metrics), fans(tables.probes)
    if runs.empty or sizes.empty or not {"loss", "tokens"} <= {*tables.metrics}:
        return pd.DataFrame()
    base = base_losses(tables.metrics)
    metrics = tables.metrics.dropna(subset="loss").astype({"cell_id": str})
    loss = metrics.pivot(index="step", columns="cell_id", values="loss")
    tokens = metrics.pivot(index="step", columns="cell_id", values="tokens")
    by_id = tables.cells.set_index(tables.cells["cell_id"].astype(str))
    steps, one_pass = by_id["steps"], by_id["supervised"]
    of_step = by_id["batch_size"] * by_id["accumulation"] / by_id["train_rows"]  # of a pass
    rows = []
    for own in groups(runs, [name for name in curve_columns(runs) if name != "lr"]):
        own = at_best_rates(own)
        ranks = own["rank"].nunique()
        shared = own.groupby("seed")["rank"].nunique() == ranks
        own = own[own["seed"].isin(shared.index[shared])]
        if ranks < 2 or own.empty:
            continue
        ids, curves = own["cell_id"], dict[float, "pd.Series[float]"]()
        for rank in own["rank"].unique().tolist():
            curve = loss[ids[own["rank"] == rank]].mean(axis=1).dropna()
            width = max(1, round(WINDOW * len(curve)))
            curves[rank] = curve.rolling(width, center=True, min_periods=1).mean()
        highest, last = max(curves), steps[ids].max()
        top = curves.pop(highest)
        learned = base.reindex(ids).mean() - top
        # An archive may keep the steps with a held-out loss only.
        if len(top) < last or not learned.iloc[-1] > 0:
            continue
        passes = ((top.index.to_series() + 1) * of_step[ids].mean()).clip(upper=1)
        seen = (passes * one_pass[ids].mean()).fillna(tokens[ids].mean(axis=1)[top.index])
        bits = learned * seen / np.log(2)
        for rank, curve in curves.items():
            parameters = rank * sizes.reindex(ids).iloc[0]
            held = (parameters * each for each in committed()["capacity"]["bits"])
            reached = (_from_here_on(bits > each) for each in held)
            rows.append(
                own.iloc[0].drop(["cell_id", "lr", "loss", "gamma", "edge"]).to_dict()
                | {"rank": rank, "highest": highest, "parameters": parameters}
                | {"step": _from_here_on(curve - top > BEHIND * learned.iloc[-1])}
                | dict(zip(EXPECTED, reached, strict=True))
                | {"steps": last, "seeds": own["seed"].nunique()}
            )
    return pd.DataFrame(rows)


def _from_here_on(is_so: pd.Series[bool]) -> float:
    """The first step from which on it is so; NaN if it is not so at the end."""
    not_so = np.flatnonzero(~is_so.to_numpy())
    first = not_so[-1] + 1 if len(not_so) else 0
    return float(is_so.index[first]) if first < len(is_so) else np.nan
