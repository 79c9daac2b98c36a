"""Power laws against the rank: log-log points with fitted line, CI band and exponent."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from study.analysis.fits import fitted
from study.analysis.grouping import CURVE_ID
from study.analysis.verdicts import rows_of as pooled_rows_of
from study.figures import style
from study.figures.captions import sentence_on_ci
from study.figures.selection import MOST_FAMILIES, DrawnRule, Family, holding
from study.vocabulary.quantities import ALL_KINDS, MEAN_LOG, MODEL_WIDE, TRAIN, Quantity
from study.vocabulary.statuses import BROKEN

MOST_RULES = 8
NARROW = 2.5
"""Width of a panel, in inches, below which its legend has predictions in parentheses."""
MARKER, WIDEST = 3.6, 10.0
"""Points: the width of a marker with its bar next to other rules, and the width of all."""
MISSED = 1.15
"""The factor beyond the band of a line at which the line misses the points of a rank."""
PER_LAYER = "one per seed, the mean over layers of the log; bars: 5th to 95th percentile of layers"
"""The points of :func:`layer_laws`, for :func:`fine_print`."""


@dataclass(frozen=True)
class RankLaw:
    """A statistic against the rank, for one rule at one step.

    - ``rank``, ``value``: one point per cell;
    - ``lost``: ranks of cells that had diverged or got stuck by this step;
    - ``fit``: the row of ``exponents``, if there is one;
    - ``spread``: for a statistic per layer, the 5th and 95th percentile over layers by rank
      (columns ``low`` and ``high``).
    """

    rule: DrawnRule
    rank: np.ndarray
    value: np.ndarray
    lost: np.ndarray
    fit: "pd.Series | None"
    spread: pd.DataFrame | None = None

    @property
    def is_missed(self) -> bool:
        """Whether the mean of some rank lies outside of the fit's band, by more than ``MISSED``."""
        if self.fit is None or not len(self.rank) or pd.isna(self.fit["ci_low"]):
            return False
        logs = pd.Series(np.log(self.value)).groupby(self.rank).mean()
        _, low, high = (np.log(end) for end in fitted(self.fit, logs.index.to_numpy()))
        return bool((np.maximum(low - logs, logs - high) > math.log(MISSED)).any())

    @property
    def predicted(self) -> float:
        return math.nan if self.fit is None else float(self.fit["predicted"])


def measured(
    cells: pd.DataFrame, series: pd.DataFrame, most: int = MOST_FAMILIES
) -> tuple[dict[Family, list[int]], str]:
    """Families with the steps at which two finite ranks have a value, at most ``most``, and a
    sentence on what is left out."""

    def steps(family: Family) -> list[int]:
        ranks = family.cells.loc[np.isfinite(family.cells["rank"]), ["cell_id", "rank"]]
        counts = series.merge(ranks, on="cell_id").groupby("step")["rank"].nunique()
        return sorted(int(step) for step in counts.index[counts > 1])

    absent = "a fit against the rank needs two ranks measured at one step"
    return holding(cells, steps, absent, most, MOST_RULES)


def panels(
    shown: Sequence[Family], columns: int, *, more: int = 1, **options: Any
) -> tuple[Figure, list[np.ndarray]]:
    """:func:`style.panels` with room for legends above. ``more``: their entries apart from the
    rules."""
    entries = min(max(len(family.rules) for family in shown), MOST_RULES) + more
    rows = math.ceil(len(options.get("labels", shown)) / options.get("beside", 1))
    return style.panels(shown, columns, above=0.3 + 0.14 * entries * rows, **options)


def laws(
    family: Family, series: pd.DataFrame, exponents: pd.DataFrame, step: int, **where: str
) -> list[RankLaw]:
    """The family's laws at ``step``, one per rule, without infinite rank; ``where`` selects the
    fit."""
    at_step = series[series["step"] == step]
    cells = family.cells[np.isfinite(family.cells["rank"])]
    model = {"batch": TRAIN, "layer": MODEL_WIDE, "kind": MODEL_WIDE}
    found = []
    for rule in family.rules[:MOST_RULES]:
        mine = cells[cells["rule"] == rule]
        points = mine.merge(at_step, on="cell_id").sort_values("rank", kind="stable")
        lost = mine[mine["status"].isin(BROKEN) & ~mine["cell_id"].isin(set(points["cell_id"]))]
        rank, value = points["rank"].to_numpy(float), points["value"].to_numpy(float)
        fits = rows_of(exponents, family, rule, step=step, **(model | where))
        fit = fits.iloc[0] if len(fits) == 1 else None
        if len(points) or len(lost):
            found.append(RankLaw(rule, rank, value, lost["rank"].to_numpy(float), fit))
    return found


def layer_laws(
    family: Family, series: pd.DataFrame, exponents: pd.DataFrame, step: int, **where: str
) -> list[RankLaw]:
    """The laws of the mean over layers of the log statistic, each with its spread over layers."""
    cells = family.cells[["cell_id", "rule", "rank", "seed"]]
    logs = series[series["step"] == step].merge(cells[np.isfinite(cells["rank"])], on="cell_id")
    logs = logs.assign(log=np.log(logs["value"]))
    # As in the fits: within a seed the same layers at every rank. A layer that is missing at some
    # ranks would otherwise look like a slope.
    expected = logs.groupby(["rule", "seed"])["cell_id"].transform("nunique")
    present = logs.groupby(["rule", "seed", "layer"])["cell_id"].transform("nunique")
    logs = logs[present == expected]
    means = np.exp(logs.groupby("cell_id")["log"].mean()).reset_index(name="value")
    where = {"layer": MEAN_LOG, "kind": ALL_KINDS, **where}
    found = []
    for law in laws(family, means.assign(step=step), exponents, step, **where):
        layers = logs[logs["rule"] == law.rule].groupby(["rank", "layer"])["log"].mean()
        low, high = (np.exp(layers.groupby("rank").quantile(share)) for share in (0.05, 0.95))
        spread = pd.DataFrame({"low": low, "high": high})
        found.append(dataclasses.replace(law, spread=spread))
    return found


def rows_of(
    exponents: pd.DataFrame, family: Family, rule: DrawnRule, **where: object
) -> pd.DataFrame:
    """The rows of ``exponents`` of this family and rule with the values ``where`` of columns."""
    if exponents.empty:
        return exponents
    cells = family.cells[family.cells["rule"] == rule]
    here = exponents[CURVE_ID].isin(set(cells[CURVE_ID]))
    return exponents[np.logical_and.reduce([here, *(exponents[n] == v for n, v in where.items())])]


def fits(
    exponents: pd.DataFrame, family: Family, rule: DrawnRule, quantity: Quantity
) -> pd.DataFrame:
    """The quantity's fits on the training batch for one family and rule: one row per step, in
    order."""
    rows = exponents[pooled_rows_of(quantity, exponents)]
    return rows_of(rows, family, rule).sort_values("step") if len(rows) else rows


def draw(
    ax: Axes,
    found: Sequence[RankLaw],
    family: Family,
    heading: str,
    inches: float,
    *,
    curved: Collection[DrawnRule] = (),
    more: Mapping[str, Line2D] | None = None,
) -> None:
    """Draw a family's laws into a panel. ``curved``: rules whose predicted curve the caller draws.
    ``more``: further entries of the legend."""
    entries: dict[str, Any] = {}
    is_short = inches < NARROW
    widths = [law.fit["ci_high"] - law.fit["ci_low"] for law in found if law.fit is not None]
    digits = 3 if not is_short and all(width < style.NARROW for width in widths) else 2
    for number, law in enumerate(found):
        shift = min(MARKER, WIDEST / len(found)) * (number - (len(found) - 1) / 2)
        look = style.look(law.rule, family.rules)
        points = _draw_points(ax, law, look, shift)
        line = _draw_fit(ax, law, look["color"], straight=law.rule not in curved)
        entries[_legend_text(law, digits, short=is_short)] = (*line, *points)
    place = ax.get_subplotspec()
    if all(law.fit is None for law in found) and not (place is None or place.is_first_col()):
        entries = {}  # the legend of the first panel has the names
    entries |= more or {}
    style.rank_axis(ax, family.finite_ranks, inches)
    ax.set_yscale("log")
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.02)}
    above |= {"alignment": "left", "title_fontproperties": {"size": 8, "weight": "normal"}}
    ax.legend(list(entries.values()), list(entries), title=heading, **above)


def _draw_points(ax: Axes, law: RankLaw, look: Mapping[str, Any], shift: float) -> list[Line2D]:
    """A hollow marker per cell, a cross for a broken one, and a bar per rank for the spread over
    layers, ``shift`` points aside."""
    who, colour = style.gid(law.rule), look["color"]
    if len(law.lost):
        cross = style.CROSS | {"color": colour, "transform": ax.get_xaxis_transform()}
        ax.plot(law.lost, np.full(len(law.lost), 0.03), gid=f"lost {who}", **cross)
    aside: Any = ax.transData
    # Matplotlib leaves shifted artists out when it chooses the limits.
    ax.update_datalim(np.column_stack([law.rank, law.value]))
    if (spread := law.spread) is not None and len(spread):
        aside += ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans)
        bar = {"color": colour, "linewidth": 0.6, "transform": aside, "zorder": 2.2}
        low, high = spread["low"], spread["high"]
        ax.vlines(spread.index, low, high, gid=f"spread {who}", **bar)
        ax.update_datalim([(spread.index[0], low.min()), (spread.index[0], high.max())])
    hollow = style.HOLLOW | {**look, "transform": aside}
    return ax.plot(law.rank, law.value, zorder=4, gid=f"points {who}", **hollow)


def _draw_fit(ax: Axes, law: RankLaw, colour: Any, *, straight: bool) -> list[Line2D]:
    """The fitted line with its band and, if ``straight``, the predicted line as dots upon it."""
    if law.fit is None:
        return []
    who = style.gid(law.rule)
    dashes = style.DASHED if law.is_missed else "solid"
    along = np.geomspace(law.fit["rank_min"], law.fit["rank_max"], 65)
    middle, low, high = fitted(law.fit, along)
    style.band(ax, along, low, high, colour, f"band {who}", zorder=2)
    if straight and np.isfinite(law.predicted):
        predicted, *_ = fitted({**law.fit, "exponent": law.predicted}, along)
        ax.plot(along, predicted, gid=f"theory {who}", linewidth=1.5, **style.PREDICTED)
    return ax.plot(along, middle, color=colour, linestyle=dashes, zorder=3, gid=f"line {who}")


def _legend_text(law: RankLaw, digits: int, *, short: bool) -> str:
    """``LoRA −0.50 [−0.52, −0.48], theory −0.50``."""
    named = f"{law.rule.letter} = {law.rule.number:g}"
    name = named if short and not law.rule.has_own_p else style.name(law.rule)
    if law.fit is None:
        return name
    gap = "  " if law.rule.has_own_p else ": "  # the name ends with a number
    ends = (float(law.fit[column]) for column in ("exponent", "ci_low", "ci_high"))
    text = f"{name}{gap}{style.interval(*ends, most=digits)}"
    if np.isfinite(law.predicted):
        theory = style.number(law.predicted, digits)
        text += f" ({theory})" if short else f", theory {theory}"
    return f"{text}, bent" if law.is_missed else text


def fine_print(
    drawn: Sequence[RankLaw],
    points: str = "one per seed",
    *,
    straight: bool = True,
    inches: float = NARROW,
) -> str:
    fits = [law.fit for law in drawn if law.fit is not None]
    sentences = [f"Points: {points}."]
    if fits:
        sentences.append("Lines: power-law fits. Legend: exponents.")
        sentences.append(sentence_on_ci("Brackets, bands", {fit["interval"] for fit in fits}))
    if any(law.is_missed for law in drawn):
        sentences.append("Bent, dashed: the line misses the points of a rank.")
    if any(np.isfinite(law.predicted) for law in drawn):
        if straight:
            sentences.append("Dotted: predicted slope, through the centre of the fit.")
        if inches < NARROW:
            sentences.append("In parentheses: the predicted exponent.")
    if any(len(law.lost) for law in drawn):
        sentences.append("×: a run at this rank had diverged or got stuck by then.")
    return " ".join(filter(None, sentences))
