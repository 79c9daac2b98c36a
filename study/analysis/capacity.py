"""What adapters store: bits of ``data=random_strings``, against the parameters of the adapter.

A string has 96 bits that nothing predicts. So a run has stored the bits of its strings less its
loss on them, in bits. The loss is that of the last pass, whose learning rate is close to 0: the end
of the cosine. It counts a token per character and one for the end, as a tokenizer of bytes makes.
"""

import numpy as np
import pandas as pd

from study.analysis.fits import interval_columns
from study.analysis.grouping import (
    CURVE_ID,
    curve_columns,
    curve_labels,
    distinguishing,
    numbered,
    seed_numbers,
)
from study.analysis.losses import fans
from study.store import StudyTables
from study.theory import slope
from study.vocabulary.sources import BITS, KEY, RANDOM_STRINGS, STRING

FULL = 0.8
"""An adapter that stored more of the bits offered could have stored more: it does not count."""


def stored_bits(tables: StudyTables) -> pd.DataFrame:
    """A row per complete cell of random strings: the columns of its curve, ``cell_id``, ``rank``,
    ``seed``, ``parameters``, and ``offered`` and stored ``bits``."""
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
    by_cell = {name: own.sort_values("step")["loss"].to_numpy() for name, own in losses}
    passes = np.ceil(strings / per_step).astype(int)
    last = [by_cell[name][-n:].mean() for name, n in zip(cells["cell_id"], passes, strict=True)]
    left = pd.Series(last) * (STRING + 1) * strings / np.log(2)
    return curve_labels(cells).assign(
        cell_id=cells["cell_id"],
        rank=cells["rank"].astype(float),
        seed=seed_numbers(cells),
        parameters=cells["rank"] * sizes.reindex(cells["cell_id"]).to_numpy(),
        offered=strings * STRING * BITS,
        bits=(strings * STRING * BITS - left).where(is_bytes),
    )


def setting_columns(table: pd.DataFrame) -> list[str]:
    """The columns in which the cells of :func:`stored_bits` differ, the number of strings aside."""
    names = distinguishing(table, curve_columns(table))
    return [name for name in names if name != "max_samples"]


def capacity(tables: StudyTables) -> pd.DataFrame:
    """A row per setting with two ranks that are full, each at the learning rate that stored most;
    the settings of most seeds come first.

    - ``exponent``, ``ci_low``, ``ci_high``: the slope of log bits with log parameters, by seed;
    - ``per_parameter``, ``bits_low``, ``bits_high``: bits stored per parameter, mean over ranks.
    """
    table = stored_bits(tables)
    if table.empty:
        return table
    table = table.dropna(subset="bits")
    same = [name for name in curve_columns(table) if name != "lr"]
    rows = []
    for _, own in table.groupby(numbered(table, same)):
        mean = own.groupby(["rank", "lr"])["bits"].mean()
        best = pd.MultiIndex.from_frame(own[["rank", "lr"]]).isin(mean.groupby("rank").idxmax())
        of_rank = own[best].groupby("rank")
        full = of_rank["bits"].transform("mean") < FULL * own.loc[best, "offered"]
        own = own[best][full]
        if own["rank"].nunique() < 2:
            continue
        seeds = [one for _, one in own.groupby("seed") if one["rank"].nunique() > 1]
        each = [(one["bits"] / one["parameters"]).mean() for one in seeds]
        bits = interval_columns("per_parameter", each)
        slopes = [slope(one["bits"], one["parameters"]) for one in seeds]
        rows.append(
            own.iloc[0][[*same, CURVE_ID]].to_dict()
            | {"bits_low": bits.pop("ci_low"), "bits_high": bits.pop("ci_high"), **bits}
            | interval_columns("exponent", slopes)
            | {"seeds": len(seeds), "rank_min": own["rank"].min(), "rank_max": own["rank"].max()}
        )
    found = pd.DataFrame(rows)
    return found.sort_values("seeds", ascending=False, kind="stable") if rows else found
