"""Curves over training: one per rule and rank, averaged over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.signal import savgol_filter

from study.analysis.grouping import end_steps
from study.figures import style
from study.figures.captions import span
from study.figures.selection import Family, Rule
from study.vocabulary.statuses import BROKEN

SMOOTHED_FROM = 40
"""Curves with fewer points are not smoothed."""
MARKED_UP_TO = 12
"""Curves with at most this many points have markers."""


@dataclass(frozen=True)
class Curve:
    """One rule at one rank: the mean over its complete cells, or one cell that is not complete.

    A broken cell (diverged or stuck) with fewer than two values is a point at infinity, at the step
    at which it broke.

    - ``low``, ``high``: the range over the cells; ``raw``: the mean before smoothing;
    - ``window``: steps per smoothed value; 1 if nothing is smoothed.
    """

    rule: Rule
    rank: float
    step: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    raw: np.ndarray
    cells: int
    status: str
    window: int

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def broken(self) -> bool:
        return self.status in BROKEN

    @property
    def has_line(self) -> bool:
        return bool(np.isfinite(self.value).any())


def curves(family: Family, series: pd.DataFrame, *, log: bool) -> list[Curve]:
    """The family's curves of a (cell_id, step, value) series; with ``log`` the mean is geometric.

    A cell that is not complete has a curve of its own: in a mean with others it would cause a jump
    where it ends. A broken cell is not smoothed, which would hide how it broke.
    """
    series = series[series["cell_id"].isin(set(family.cells["cell_id"]))]
    steps = series["step"].nunique()
    window = 2 * (steps // 25) + 1 if steps >= SMOOTHED_FROM else 1
    ids = family.cells["cell_id"]
    status = dict(zip(ids, family.cells["status"].astype(str), strict=True))
    ended = dict(zip(ids, end_steps(family.cells), strict=True))
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
                rows = wide[complete].dropna()
                found.append(_averaged(rule, rank, rows, "complete", window, log))
            for cell in cells:
                alone = wide.reindex(columns=[cell]).dropna()
                if cell in complete:
                    continue
                if len(alone) > 1:
                    smoothed = 1 if status[cell] in BROKEN else window
                    found.append(_averaged(rule, rank, alone, status[cell], smoothed, log))
                elif status[cell] in BROKEN:
                    found.append(_lost(rule, rank, ended[cell], status[cell]))
    return found


def _lost(rule: Rule, rank: float, step: float, status: str) -> Curve:
    """A broken cell without a line."""
    at, beyond = np.array([step]), np.array([np.inf])
    return Curve(rule, rank, at, beyond, beyond, beyond, beyond, 1, status, 1)


def _averaged(
    rule: Rule, rank: float, wide: pd.DataFrame, status: str, window: int, log: bool
) -> Curve:
    values = np.log(wide.to_numpy(float)) if log else wide.to_numpy(float)
    window = window if len(values) >= window else 1
    # First order: a centred running mean, and a straight line over the first and last window.
    smooth = savgol_filter(values, window, 1, axis=0, mode="interp") if window > 1 else values
    lines = [smooth.mean(axis=1), smooth.min(axis=1), smooth.max(axis=1), values.mean(axis=1)]
    mean, low, high, raw = map(np.exp, lines) if log else lines
    return Curve(
        rule, rank, wide.index.to_numpy(), mean, low, high, raw, values.shape[1], status, window
    )


def draw(
    ax: Axes,
    found: Sequence[Curve],
    others: Sequence[Curve],
    ranks: Sequence[float],
    reach: tuple[float, float],
) -> None:
    """Draw the curves of a rule in the shades of their ranks, each labelled with its rank.

    Curves that are not complete are thinner, and the curve of a broken cell ends in a cross. A
    cross outside of the range ``reach`` is drawn at its edge. ``others``: curves of other rules,
    drawn in grey behind.
    gids: ``curve|raw|band|cross|other <scaling> p=<p> r=<rank> <status>``; ``label <rank>``.
    """
    for curve in others:
        if curve.complete:
            look = style.keywords(color=style.CONTEXT, linewidth=0.4, zorder=0.5)
            ax.plot(curve.step, curve.value, gid=f"other {_who(curve)}", **look)
    dots = "o" if all(len(curve.step) <= MARKED_UP_TO for curve in found) else None
    for curve in sorted(found, key=lambda c: (not c.complete, c.rank)):
        _draw_curve(ax, curve, style.shade(curve.rule, curve.rank, ranks), dots, len(ranks), reach)
    for rank in ranks:
        ends = [curve for curve in found if curve.rank == rank and curve.has_line]
        if ends:
            last = max(ends, key=lambda curve: (curve.complete, curve.step[-1]))
            y = float(np.clip(last.value[-1], *reach))
            colour = style.shade(last.rule, rank, ranks)
            style.label_end(ax, float(last.step[-1]), y, style.rank_name(rank), colour)


def _draw_curve(
    ax: Axes,
    curve: Curve,
    colour: style.RGBA,
    dots: str | None,
    ranks: int,
    reach: tuple[float, float],
) -> None:
    """One curve, with its range over the seeds and its distance from the values before smoothing.

    ``ranks``: how many ranks the panel has: many overlapping areas become opaque.
    """
    who = _who(curve)
    areas = [("band", curve.low, curve.high, max(0.05, 0.6 / (3 + ranks)))] * (curve.cells > 1)
    areas += [("raw", curve.raw, curve.value, 0.25)] * (curve.window > 1)
    for kind, low, high, opacity in areas:
        style.band(ax, curve.step, low, high, colour, f"{kind} {who}", alpha=opacity, zorder=1)
    if curve.broken:
        last = np.clip(curve.value[-1:], *reach)
        ax.plot(curve.step[-1:], last, color=colour, gid=f"cross {who}", **style.CROSS)
    if curve.has_line:
        width, dashes = (
            0.9 if curve.complete else 0.5,
            "dashed" if np.isinf(curve.rank) else "solid",
        )
        look = style.keywords(color=colour, linewidth=width, linestyle=dashes, markersize=2.2)
        ax.plot(curve.step, curve.value, marker=dots, gid=f"curve {who}", **look)


def _who(curve: Curve) -> str:
    return f"{style.gid(curve.rule)} r={style.rank_name(curve.rank)} {curve.status}"


def limits(found: Sequence[Curve], *, log: bool, margin: float) -> tuple[float, float]:
    """The y range: that of the complete curves, plus up to half of it for the other curves.

    ``margin``: the share of the range that stays free at either end.
    """
    found = [curve for curve in found if curve.has_line]
    if not found:
        return (1.0, 10.0) if log else (0.0, 1.0)
    scale = np.log if log else np.asarray
    complete = [curve for curve in found if curve.complete] or list(found)
    values = scale(np.concatenate([v for c in complete for v in (c.low, c.high, c.raw)]))
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 0.1 * abs(high) or 1.0
    every = scale(np.concatenate([curve.value for curve in found]))
    low = max(min(low, float(every.min())), low - span / 2)
    high = min(max(high, float(every.max())), high + span / 2)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return (float(np.exp(low)), float(np.exp(high))) if log else (low, high)


def coincide(found: Sequence[Curve], reach: tuple[float, float], *, log: bool) -> bool:
    """Whether the curves of some rule are within 2 % of the y range: one curve hides the others."""
    scale = np.log if log else np.asarray
    for rule in {curve.rule for curve in found}:
        complete = [curve for curve in found if curve.rule == rule and curve.complete]
        apart = pd.DataFrame(
            {curve.rank: pd.Series(scale(curve.value), curve.step) for curve in complete}
        ).dropna()
        near = 0.02 * np.ptp(scale(reach))
        if len(complete) > 1 and len(apart) and np.ptp(apart, axis=1).max() < near:
            return True
    return False


def step_axis(ax: Axes, steps: np.ndarray) -> None:
    """The axis of optimizer steps: logarithmic if half of the steps are in the first quarter of a
    long run, else linear."""
    ax.set_xlabel("optimizer step")
    last = max(int(steps.max()), 1)
    if last <= 64 or np.median(np.unique(steps)) > last / 4:
        whole = MaxNLocator(6, steps=[1, 2, 5, 10], integer=True).tick_values(0, last)
        ax.xaxis.set_major_locator(FixedLocator([step for step in whole if 0 <= step <= last]))
        return
    powers = [10**k for k in range(len(str(last)))]
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    ax.xaxis.set_major_locator(FixedLocator([0, *powers]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(-0.1, last * 1.15)


def fine_print(
    drawn: Sequence[Curve], *, ranks: int, mean: str = "mean", hidden: bool = False
) -> str:
    """What lines, bands and crosses mean.

    ``drawn``: the curves of all ranks; ``ranks``: how many ranks are drawn. ``hidden``: whether
    some curves hide others.
    """
    seeds = [curve.cells for curve in drawn if curve.complete]
    windows = {curve.window for curve in drawn} - {1}
    every = len({curve.rank for curve in drawn})
    sentences = [style.on_ranks(ranks, every)]
    if max(seeds, default=1) > 1:
        sentences.append(f"Lines: {mean} over {span(seeds)} seeds; bands: their range.")
    if len({curve.rule for curve in drawn if curve.complete}) > 1:
        sentences.append("Grey: the other rules, at the lowest and the highest rank.")
    if hidden:
        sentences.append("Where a panel shows a single line, the lines of all ranks coincide.")
    if windows:
        sentences.append(
            f"Smoothed over {max(windows)} steps; shaded: the distance from the values before "
            "smoothing."
        )
    if any(not curve.complete and not curve.broken for curve in drawn):
        sentences.append("Thin lines: runs that have not finished.")
    broken = [status for status in BROKEN if any(curve.status == status for curve in drawn)]
    if broken:
        sentences.append(
            f"Thin lines ending in ×: {' and '.join(broken)} runs, at their last finite value or "
            "the panel's edge."
        )
    if "stuck" in broken:
        sentences.append("A stuck run has no gradient from there on.")
    return " ".join(sentences)
