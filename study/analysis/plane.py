"""The plane of alpha and learning rate: which pair reaches the lowest held-out loss at each rank?

Here alpha is ``gamma * rank``, whatever the scaling rule. It is LoRA's alpha, so runs of all rules
lie on one plane, and a rule is a way through it: alpha is constant under LoRA, grows as the square
root of the rank under rsLoRA, and as the rank if gamma is constant. docs/alpha.md has the
derivation.

>>> found = runs(tables.cells, tables.metrics, tables.probes)       # doctest: +SKIP
>>> best_pairs(lowest_losses(found))                                # doctest: +SKIP
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from study.analysis.fits import Floats, interval_columns, mean_interval
from study.analysis.losses import end_losses, final_losses
from study.vocabulary.quantities import BEST_RHO, TRAIN
from study.vocabulary.scaling import FULL

PLACE = ["setting", "rank"]
"""The columns of one plane."""
REACH = math.log(4.2)
"""How far from the best alpha tried a parabola is fitted, in log alpha. Beside alphas in steps of 4
a plane may have those of other rules, which lie close together. Over rates a parabola passes
through three points, because the loss rises steeply above the best rate."""
FEWEST_SEEDS = 3
"""The seeds that a cost should have."""


class Vertex(NamedTuple):
    """The lowest point of a curve, with its coordinates in logs as the caller gave them."""

    x: float
    y: float


def vertex(x: Floats, y: Floats, reach: float = 0.0) -> Vertex:
    """The vertex of a parabola around the lowest of ``y``.

    It passes through the lowest point and its two neighbours. If other points are at most ``reach``
    from the lowest one, it is fitted to all of them by least squares. ``x`` must be ascending. Both
    coordinates are NaN if the lowest point is the first, the last, or next to a missing value: then
    the minimum was not bracketed.
    """
    unknown = Vertex(math.nan, math.nan)
    if np.isfinite(y).sum() < 3:
        return unknown
    lowest = int(np.nanargmin(y))
    if lowest in (0, len(y) - 1) or not np.isfinite(y[lowest - 1 : lowest + 2]).all():
        return unknown
    off = x - x[lowest]
    near = (np.abs(off) <= reach) & np.isfinite(y)
    near[lowest - 1 : lowest + 2] = True
    a, b, c = np.polyfit(off[near], y[near], 2)
    if a <= 0:
        return Vertex(float(x[lowest]), float(y[lowest]))
    return Vertex(float(x[lowest] - b / (2 * a)), float(c - b * b / (4 * a)))


def runs(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """One row per finished run of finite rank.

    - ``setting``: a number. Runs of one setting differ in rule, alpha, rate, rank and seed only;
    - ``rank``, ``alpha`` (``gamma * rank``), ``lr``, ``seed``;
    - ``loss``: the last held-out loss, nats per token; NaN if the run diverged;
    - ``rho``: the motion of A over its init at the last probed step, mean over layers of its log;
      NaN if it was not measured.
    """
    found = final_losses(cells, metrics)
    alpha = (found["gamma"] * found["rank"]).map(lambda value: float(f"{value:.4g}"))
    rho = found["cell_id"].map(final_rho(probes)).astype(float)
    columns = ["setting", "rank", "alpha", "lr", "seed", "loss", "rho", "cell_id"]
    return found.assign(alpha=alpha, rho=rho)[columns]


def final_rho(probes: pd.DataFrame) -> "pd.Series[float]":
    """By cell, rho at its last probed step: the mean over layers of log rho."""
    if "rho" not in probes:
        return pd.Series(dtype=float)
    of_A = probes[(probes["site"] == "A") & (probes["batch"] == TRAIN) & (probes["rho"] > 0)]
    of_A = of_A.assign(cell_id=of_A["cell_id"].astype(str))
    last = of_A[of_A["step"] == of_A.groupby("cell_id")["step"].transform("max")]
    return np.exp(np.log(last["rho"]).groupby(last["cell_id"]).mean())


def motion_words(rho: float) -> str:
    """A sentence on how far A has moved, and where the studies of alpha have their lowest loss."""
    low, high = BEST_RHO
    sentence = (
        f"A has moved by {rho:.2g} of its initial size (rho). The studies of alpha have their "
        f"lowest loss at {low:g} to {high:g} (AdamW, ranks 16 to 256)"
    )
    if rho > high:
        return f"{sentence}: a larger alpha with a lower learning rate moves A less."
    if rho < low:
        return f"{sentence}: a smaller alpha with a higher learning rate moves A more."
    return f"{sentence}."


def lowest_losses(found: pd.DataFrame) -> pd.DataFrame:
    """The lowest loss over the rate, a row per setting, rank, alpha and seed.

    ``lr`` and ``loss`` are those of the vertex in log rate (:func:`vertex`), NaN if the best rate
    tried is at an edge. ``rho`` is interpolated there. Twins, which two rules trained at one gamma,
    count once.
    """
    rows = []
    for place, own in found.groupby([*PLACE, "alpha", "seed"]):
        rates = own.groupby("lr")
        curve = rates[["loss", "rho"]].mean()
        curve["loss"] = curve["loss"].where(rates["loss"].count() == rates.size())
        x = np.log(curve.index.to_numpy(float))
        best = vertex(x, curve["loss"].to_numpy(float))
        log_rho = np.interp(best.x, x, np.log(curve["rho"].to_numpy(float)))
        rows.append((*place, math.exp(best.x), best.y, math.exp(log_rho)))
    names = [*PLACE, "alpha", "seed", "lr", "loss", "rho"]
    return pd.DataFrame(rows, columns=names)


def best_pairs(lowest: pd.DataFrame) -> pd.DataFrame:
    """The best alpha and rate of each rank, a row per setting and rank.

    In each seed the best ``alpha`` is the vertex over log alpha of the ``lowest`` losses; ``lr``
    and ``rho`` are interpolated there. The row has geometric means over the seeds with their 95 %
    t-intervals, as ``alpha``, ``alpha_low``, ``alpha_high`` and so on; the mean ``loss``; and the
    number of ``seeds``. Seeds that lack the highest alpha of the rank are left out, and those whose
    best alpha tried is at an edge.
    """
    rows = []
    for place, own in lowest.groupby(PLACE):
        own = own[own["seed"].isin(own.loc[own["alpha"] == own["alpha"].max(), "seed"])]
        pairs = [_best_pair(seed) for _, seed in own.dropna(subset="loss").groupby("seed")]
        pairs = [pair for pair in pairs if np.isfinite(pair["loss"])]
        if not pairs:
            continue
        table = pd.DataFrame(pairs)
        row = dict(zip(PLACE, place, strict=True))
        for name in ("alpha", "lr", "rho"):
            ends = np.exp(mean_interval(np.log(table[name].dropna())))
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        rows.append(row | {"loss": table["loss"].mean(), "seeds": len(table)})
    return pd.DataFrame(rows)


def _best_pair(of_seed: pd.DataFrame) -> dict[str, float]:
    curve = of_seed.sort_values("alpha")
    log_alpha = np.log(curve["alpha"].to_numpy(float))
    best = vertex(log_alpha, curve["loss"].to_numpy(float), REACH)
    logs = np.log(curve[["lr", "rho"]].to_numpy(float))
    lr, rho = (np.exp(np.interp(best.x, log_alpha, of)) for of in logs.T)
    return {"alpha": math.exp(best.x), "lr": float(lr), "rho": float(rho), "loss": best.y}


def costs(lowest: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """What keeping ``alpha`` costs at each rank, a row per setting and rank.

    ``cost`` is the lowest loss at ``alpha`` less that at the alpha ``against``, nats per token,
    paired by seed, with a 95 % t-interval over the ``seeds``. ``against`` is the alpha tried that
    makes the mean cost largest, of those that have three seeds in common with ``alpha``, or as many
    as there are. It was chosen after the fact, so noise makes the cost a little too large.
    """
    rows = []
    for (setting, rank), own in lowest.groupby(PLACE):
        table = own.pivot(index="seed", columns="alpha", values="loss")
        if alpha not in table:
            continue
        gaps = table.drop(columns=alpha).rsub(table[alpha], axis=0)
        seeds = gaps.count()
        enough = seeds[seeds >= min(FEWEST_SEEDS, max(seeds.max(), 1))].index
        if enough.empty:
            continue
        against = gaps[enough].mean().idxmax()
        gap = gaps[against].dropna()
        row = {"setting": setting, "rank": rank, "against": against}
        rows.append(row | interval_columns("cost", gap) | {"seeds": len(gap)})
    return pd.DataFrame(rows)


def full_losses(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The runs of full fine-tuning: ``lr``, ``seed``, ``loss`` (NaN if diverged)."""
    full = cells[cells["scaling"].astype(str) == FULL]
    losses = end_losses(full, metrics)
    return full[["lr", "seed"]].assign(loss=losses).reset_index(drop=True)
