"""Curves over training: one per rule and rank, averaged over seeds, and how they are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.signal import savgol_filter

from study.figures import style
from study.figures.selection import Family, Rule

SMOOTHED_FROM = 40
"""Curves with fewer points than this are drawn as they are."""


@dataclass(frozen=True)
class Curve:
    """One rule at one rank: the mean over its complete cells with their range, or one cell that is not complete."""

    rule: Rule
    rank: float
    step: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    raw: np.ndarray
    """The mean before smoothing."""
    cells: int
    status: str
    window: int
    """How many steps one smoothed value averages; 1 where nothing is smoothed."""

    @property
    def complete(self) -> bool:
        return self.status == "complete"


def curves(family: Family, series: pd.DataFrame, *, log: bool) -> list[Curve]:
    """The family's curves of a (cell_id, step, value) series; with ``log`` the mean is geometric.

    A cell that diverged or has not finished keeps a curve of its own: averaging it with the others would make a jump
    where it ends. A diverged one is never smoothed, as that would hide how it went.
    """
    series = series[series["cell_id"].isin(set(family.cells["cell_id"]))]
    steps = series["step"].nunique()
    window = 2 * (steps // 25) + 1 if steps >= SMOOTHED_FROM else 1
    status = dict(zip(family.cells["cell_id"], family.cells["status"].astype(str), strict=True))
    wide = series.pivot(index="step", columns="cell_id", values="value")
    found = []
    for rule in family.rules:
        for rank in family.ranks:
            cells = family.cells.loc[
                (family.cells["rule"] == rule) & (family.cells["rank"] == rank), "cell_id"
            ]
            measured = [cell for cell in cells if cell in wide]
            complete = [cell for cell in measured if status[cell] == "complete"]
            if complete:
                found.append(
                    _averaged(rule, rank, wide[complete].dropna(), "complete", window, log)
                )
            for cell in measured:
                alone = wide[[cell]].dropna()
                if cell not in complete and len(alone) > 1:
                    smoothed = 1 if status[cell] == "diverged" else window
                    found.append(_averaged(rule, rank, alone, status[cell], smoothed, log))
    return found


def _averaged(
    rule: Rule, rank: float, wide: pd.DataFrame, status: str, window: int, log: bool
) -> Curve:
    values = np.log(wide.to_numpy(float)) if log else wide.to_numpy(float)
    window = window if len(values) >= window else 1
    # Of first order: a centred running mean, and a straight line over the first and the last window.
    smooth = savgol_filter(values, window, 1, axis=0, mode="interp") if window > 1 else values
    mean, low, high, raw = (
        smooth.mean(axis=1),
        smooth.min(axis=1),
        smooth.max(axis=1),
        values.mean(axis=1),
    )
    if log:
        mean, low, high, raw = np.exp(mean), np.exp(low), np.exp(high), np.exp(raw)
    return Curve(
        rule, rank, wide.index.to_numpy(), mean, low, high, raw, values.shape[1], status, window
    )


def draw(
    ax: Axes, found: Sequence[Curve], ranks: Sequence[float], reach: tuple[float, float]
) -> None:
    """Draw curves in their ranks' shades, unfinished ones thinner; a diverged one ends in a cross.

    A cross beyond ``reach`` sits at its end. gids: ``curve|raw|band|cross <scaling> p=<p> r=<rank> <status>``.
    """
    fog = max(0.05, 0.6 / (3 + len(ranks)))  # many bands upon one another turn opaque
    dots = "o" if all(len(curve.step) <= 12 for curve in found) else None
    for curve in sorted(found, key=lambda c: (not c.complete, c.rank)):
        colour = style.shade(curve.rule, curve.rank, ranks)
        who = f"{style.gid(curve.rule)} r={style.rank_name(curve.rank)} {curve.status}"
        if curve.cells > 1:
            band = ax.fill_between(
                curve.step, curve.low, curve.high, color=colour, alpha=fog, linewidth=0, zorder=1
            )
            band.set_gid(f"band {who}")
        if curve.window > 1:
            ax.plot(
                curve.step,
                curve.raw,
                color=colour,
                alpha=0.15,
                linewidth=0.3,
                zorder=1.5,
                gid=f"raw {who}",
            )
        ax.plot(
            curve.step,
            curve.value,
            color=colour,
            linewidth=0.9 if curve.complete else 0.5,
            linestyle="dashed" if np.isinf(curve.rank) else "solid",
            marker=dots,
            markersize=2.2,
            gid=f"curve {who}",
        )
        if curve.status == "diverged":
            last = np.clip(curve.value[-1:], *reach)
            ax.plot(curve.step[-1:], last, color=colour, gid=f"cross {who}", **style.CROSS)


def limits(found: Sequence[Curve], *, log: bool, margin: float) -> tuple[float, float]:
    """The y range: what the complete curves need, and up to half as much again for those that went astray.

    ``margin`` is kept free on either side, in parts of the range.
    """
    if not found:
        return (1.0, 10.0) if log else (0.0, 1.0)
    ends = np.log if log else np.asarray
    steady = [c for c in found if c.complete] or list(found)
    low, high = (
        float(ends(f([f(v) for c in steady for v in (c.low, c.high, c.raw)])))
        for f in (np.min, np.max)
    )
    span = (high - low) or 0.1 * abs(high) or 1.0
    least, most = (float(ends(f([f(c.value) for c in found]))) for f in (np.min, np.max))
    low, high = max(min(low, least), low - span / 2), min(max(high, most), high + span / 2)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return (float(np.exp(low)), float(np.exp(high))) if log else (low, high)


def coincide(found: Sequence[Curve], reach: tuple[float, float], *, log: bool) -> bool:
    """Whether the ranks of some rule lie within 2 % of the y range of one another: then one curve hides the rest."""
    scale = np.log if log else np.asarray
    for rule in {curve.rule for curve in found}:
        complete = [curve for curve in found if curve.rule == rule and curve.complete]
        apart = pd.DataFrame(
            {curve.rank: pd.Series(scale(curve.value), curve.step) for curve in complete}
        ).dropna()
        if (
            len(complete) > 1
            and len(apart)
            and np.ptp(apart, axis=1).max() < 0.02 * np.ptp(scale(reach))
        ):
            return True
    return False


def step_axis(ax: Axes, steps: np.ndarray) -> None:
    """The axis of optimizer steps: linear, or logarithmic from 1 on where the steps were spaced that way."""
    ax.set_xlabel("optimizer step")
    last = max(int(steps.max()), 1)
    if last <= 64 or np.median(steps) > last / 8:
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        return
    powers = [10**k for k in range(len(str(last)))]
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    ax.xaxis.set_major_locator(FixedLocator([0, *powers]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(-0.1, last * 1.15)


def fine_print(drawn: Sequence[Curve], *, mean: str = "mean", hidden: bool = False) -> str:
    """How the drawn curves came about, in a sentence or three."""
    seeds = sorted({c.cells for c in drawn if c.complete})
    windows = sorted({c.window for c in drawn} - {1})
    said = []
    if seeds and seeds[-1] > 1:
        many = str(seeds[-1]) if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
        said.append(f"Lines: {mean} over {many} seeds; bands: their range.")
    if hidden:
        said.append("Where a panel seems to hold one curve, the curves of its ranks coincide.")
    if windows:
        said.append(f"Smoothed over {windows[-1]} steps; hairlines: before smoothing.")
    if any(c.status not in ("complete", "diverged") for c in drawn):
        said.append("Thin lines: runs that have not finished.")
    if any(c.status == "diverged" for c in drawn):
        said.append(
            "Thin lines ending in ×: runs that diverged, at their last finite value (or the edge)."
        )
    return " ".join(said)
