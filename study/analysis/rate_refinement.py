"""Which learning rates a sweep still lacks, and the command lines that train them.

Rates of a rank should lie in steps of 2 around its best one, with none of the best at an edge. A
best rate at an edge asks for the next two beyond; a wider step beside it, for a rate half or twice
as large.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.final_losses import (
    HIGHEST,
    INSIDE,
    LOWEST,
    final_losses,
    rates_of_a_rank,
)
from study.analysis.grouping import numbered
from study.analysis.rates import OF_A_RULE, bottom

STEP = 2.0
SLACK = 1.2
"""A step of up to ``STEP * SLACK`` counts as one of ``STEP``: rates are rounded."""
BEYOND = 2
"""Rates that are asked for beyond an edge."""


@dataclass(frozen=True)
class Missing:
    """Rates to train. ``cell_id``: a cell with all of its settings but rate and seed.

    ``seeds``: pairs of a seed and a data seed, as the rank was run at.
    """

    cell_id: str
    rates: tuple[float, ...]
    seeds: tuple[tuple[int, int], ...]

    @property
    def swept(self) -> list[str]:
        """The overrides of ``study train -m`` for rates and seeds.

        ``data.seed`` follows ``seed``, unless every run had the same one.
        """
        seeds, of_data = zip(*self.seeds, strict=True)
        follows = seeds == of_data
        return [
            f"optimizer.lr={','.join(f'{rate:g}' for rate in self.rates)}",
            f"seed={','.join(str(seed) for seed in dict.fromkeys(seeds))}",
            *([] if follows else [f"data.seed={','.join(map(str, dict.fromkeys(of_data)))}"]),
        ]


def missing_rates(
    cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> list[Missing]:
    """What each rule and rank lacks; empty if nothing. Ranks with one rate or no seed are left out.

    Rates are those that one seed or another needs: the seeds of a rank share a grid.
    """
    ends = final_losses(cells, metrics, probes)
    if ends.empty:
        return []
    ends = ends.sort_values(["setting", "scaling", "exponent_p", "alpha", "rank", "seed"])
    by_id = cells.assign(cell_id=cells["cell_id"].astype(str)).set_index("cell_id")
    found = []
    for _, runs in ends.groupby(numbered(ends, (*OF_A_RULE, "rank"))):
        tried = rates_of_a_rank(runs)
        here = runs[runs["lr"].isin(tried)]
        wanted: set[float] = set()
        for _, own in here.groupby("seed") if len(tried) > 1 else ():
            wanted |= set(_wanted(own))
        rates = _without_near(sorted(wanted), tried)
        if rates:
            of_rank = by_id.loc[list(runs["cell_id"])]
            seeds = of_rank[[n for n in ("seed", "data_seed") if n in of_rank]].drop_duplicates()
            pairs = sorted((int(row[0]), int(row[-1])) for row in seeds.to_numpy())
            found.append(Missing(str(runs["cell_id"].iloc[0]), tuple(rates), tuple(pairs)))
    return found


def _wanted(own: pd.DataFrame) -> Iterable[float]:
    """The rates that the runs of one rule, rank and seed ask for, tried ones among them."""
    if not np.isfinite(own["loss"]).any():
        return [float(own["lr"].min()) / STEP**n for n in range(1, BEYOND + 1)]
    edge = bottom(own["lr"].to_numpy(float), own["loss"].to_numpy(float)).edge
    best = float(own["lr"].iloc[int(np.nanargmin(own["loss"].to_numpy(float)))])
    if edge == INSIDE:
        return _beside(best, own)
    towards = {LOWEST: 1 / STEP, HIGHEST: STEP}[edge]
    return [best * towards**n for n in range(1, BEYOND + 1)]


def _beside(best: float, own: pd.DataFrame) -> list[float]:
    """Half of and twice ``best``, if the step to the next rate tried is wider."""
    lr = own["lr"].to_numpy(float)
    above, below = lr[lr > best].min() / best, best / lr[lr < best].max()
    steps = ((above, STEP), (below, 1 / STEP))
    return [best * factor for step, factor in steps if step > STEP * SLACK]


def _without_near(wanted: Sequence[float], tried: Sequence[float]) -> list[float]:
    """``wanted`` without rates near one that was tried, or near an earlier one, to 3 digits."""
    kept: list[float] = []
    for rate in wanted:
        others = np.array([*tried, *kept])
        if (np.abs(np.log(rate / others)) > np.log(SLACK)).all():
            kept.append(float(f"{rate:.3g}"))
    return kept
