"""The law of the best pair of alpha and rate: how the best alpha, and rho there, move with the
steps, the rank and the width of the model. Fitted on our planes at ranks 16 and above, and tested
on planes that were left out.

Near its minimum the lowest loss over the rate is taken as a quadratic in log alpha. Every plane
(model, steps, rank) has one minimum for all seeds, and a level for each seed.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from research.blocks import ROOT
from research.plane import lowest
from study.analysis.fits import Floats
from study.analysis.plane import REACH
from study.analysis.text import minus, table_of
from study.analysis.wording import interval_text

LEAST_RANK = 16
"""Ranks 1 and 4 have smaller best alphas, whatever the steps."""
WIDTHS = {"small": 256, "smollm2": 576, "w64": 64, "w256": 256}
"""The width of each plane's model."""
PLANES = (
    *(("small", steps) for steps in (64, 256, 1024)),
    *(("smollm2", steps) for steps in (256, 1024)),
    *(("w64", 256), ("w256", 256)),
)
ROOM = math.log(2)
"""How far a minimum must lie inside the alphas that it is fitted to. It was set after one minimum
had been seen at 47 with alphas up to 64 (rank 64 after 1,024 steps)."""
AT = {"steps": 256.0, "rank": 64.0, "width": 256.0}
"""Where the constant of the law is its value."""


class Minimum(NamedTuple):
    """``log_alpha``: of the minimum, with its standard error ``sd``. ``log_rho``: there. ``seeds``:
    in the fit. ``bound``: ``>`` or ``<`` if it lies beyond the highest or lowest alpha fitted, or
    nearer to it than :data:`ROOM`."""

    log_alpha: float
    sd: float
    log_rho: float
    seeds: int
    bound: str


def minimum(losses: pd.DataFrame) -> Minimum | None:
    """The minimum over log alpha of the lowest losses of one plane.

    A quadratic with a level for each seed, by least squares, on the alphas within
    :data:`~study.analysis.plane.REACH` of the lowest one. None with fewer than three alphas there,
    or if the quadratic has no minimum.
    """
    losses = losses.dropna(subset=["loss", "rho"])
    if losses["alpha"].nunique() < 3:
        return None
    # The lowest alpha: of effects of alpha and of seed, as not every seed has every alpha.
    columns = pd.get_dummies(losses[["alpha", "seed"]].astype(str), dtype=float)
    effects = pd.Series(np.linalg.pinv(columns) @ losses["loss"], columns.columns)
    names = effects.index[effects.index.str.startswith("alpha_")]
    best = float(effects[names].idxmin().removeprefix("alpha_"))
    near = losses[np.log(losses["alpha"] / best).abs() <= REACH]
    if near["alpha"].nunique() < 3:
        return None
    x, y = np.log(near["alpha"].to_numpy(float)), near["loss"].to_numpy(float)
    design = np.column_stack([x**2, x, pd.get_dummies(near["seed"])]).astype(float)
    found = np.linalg.lstsq(design, y, rcond=None)[0]
    a, b = found[:2]
    if a <= 0:
        return None
    residual = y - design @ found
    variance = float(residual @ residual) / max(len(y) - design.shape[1], 1)
    covariance = np.linalg.inv(design.T @ design)[:2, :2] * variance
    slope = np.array([b / (2 * a**2), -1 / (2 * a)])  # of -b / 2a
    at = float(-b / (2 * a))
    log_rho = float(np.polyval(np.polyfit(x, np.log(near["rho"]), 1), at))
    bound = ">" if at > x.max() - ROOM else "<" if at < x.min() + ROOM else ""
    sd = float(slope @ covariance @ slope) ** 0.5
    return Minimum(at, sd, log_rho, losses["seed"].nunique(), bound)


@cache
def minima() -> pd.DataFrame:
    """A row per plane of :data:`PLANES` and rank with a minimum: :class:`Minimum` and ``model``,
    ``steps``, ``rank``, ``width``."""
    rows = []
    for model, steps in PLANES:
        for rank, own in lowest(model, steps).groupby("rank"):
            if rank >= LEAST_RANK and (found := minimum(own)) is not None:
                about = {"model": model, "steps": steps, "rank": rank, "width": WIDTHS[model]}
                rows.append(about | found._asdict())
    return pd.DataFrame(rows)


TERMS = {
    "constant": lambda rows: np.ones(len(rows)),
    "the steps": lambda rows: np.log(rows["steps"] / AT["steps"]),
    "the rank": lambda rows: np.log(rows["rank"] / AT["rank"]),
    "the width": lambda rows: np.log(rows["width"] / AT["width"]),
}
"""What the best alpha and rho are powers of; the constant is at :data:`AT`."""


def _design(rows: pd.DataFrame) -> Floats:
    return np.column_stack([term(rows) for term in TERMS.values()])


def inside() -> pd.DataFrame:
    """The minima that lie between two alphas tried."""
    return minima().query("bound == ''").reset_index(drop=True)


def pair_law() -> str:
    """A row per term: the power of it in the best alpha and in rho, by least squares on the
    minima, with 95 % t-intervals."""
    rows = inside()
    design = _design(rows)
    inverse = np.linalg.pinv(design.T @ design)
    freedom = len(rows) - np.linalg.matrix_rank(design)
    texts = [{"": name} for name in TERMS]
    for head, column in (("best α", "log_alpha"), ("ρ", "log_rho")):
        y = rows[column].to_numpy(float)
        found = inverse @ design.T @ y
        residual = y - design @ found
        scatter = residual @ residual / freedom
        half = student.ppf(0.975, freedom) * np.sqrt(scatter * np.diag(inverse))
        for n, text in enumerate(texts):
            ends = np.array([found[n], found[n] - half[n], found[n] + half[n]])
            text[head] = interval_text(*(np.exp(ends) if n == 0 else ends), 2)
    return minus(table_of(texts))


def pair_left_out() -> str:
    """A row per plane: its best alpha as the law of all other planes has it, against what was
    measured; beside it the constant of the others, without any power."""
    rows, texts = inside(), []
    for plane, own in rows.groupby(["model", "steps"], sort=False):
        others = rows.drop(own.index)
        coefficients = np.linalg.pinv(_design(others)) @ others["log_alpha"]
        predicted = _design(own) @ coefficients
        off = np.abs(predicted - own["log_alpha"]).median()
        flat = np.abs(others["log_alpha"].mean() - own["log_alpha"]).median()
        rho = np.abs(others["log_rho"].mean() - own["log_rho"]).median()
        texts.append(
            {
                "plane left out": f"{plane[0]}, {plane[1]} steps",
                "ranks": ", ".join(f"{rank:g}" for rank in own["rank"]),
                "best α": ", ".join(f"{alpha:.0f}" for alpha in np.exp(own["log_alpha"])),
                "by the law": ", ".join(f"{alpha:.0f}" for alpha in np.exp(predicted)),
                "off by": f"{np.exp(off):.2f}",
                "one α for all": f"{np.exp(flat):.2f}",
                "one ρ for all": f"{np.exp(rho):.2f}",
            }
        )
    return table_of(texts)


def alphas_of_others() -> str:
    """A row per published sweep and rank with several alphas: the lowest loss at each alpha over
    the rates tried, with its rate. An edge of the rates is marked."""
    sweeps = pd.read_csv(ROOT / "results/external/sweeps.csv")
    sweeps = sweeps[sweeps["loss"] > 0]  # others are scores
    rows = []
    about = ["source", "model", "data", "steps", "rank"]
    for key, own in sweeps.groupby(about, sort=False):
        if own["alpha"].nunique() < 2:
            continue
        texts = []
        for alpha, at in own.groupby("alpha"):
            best = at.loc[at["loss"].idxmin()]
            edge = best["lr"] in (at["lr"].min(), at["lr"].max())
            texts.append(f"{alpha:.3g}: {best['loss']:.4f} ({'≤' if edge else ''}{best['lr']:.2g})")
        source, model, data, steps, rank = key
        row = {"sweep": f"{source}: {model}, {data}", "steps": str(steps), "rank": str(rank)}
        rows.append(row | {"α = γr: lowest loss (rate)": "; ".join(texts)})
    return table_of(rows)
