"""Power laws against the rank: log-log points with fitted line, CI band and exponent."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform
from pandas.api.types import is_numeric_dtype

from study.analysis import fitted
from study.analysis.verdicts import rows_of as pooled_rows_of
from study.figures import style
from study.figures.captions import sentence_on_ci
from study.figures.selection import Absent, Family, Rule, families, most_varied, rules_left_out
from study.vocabulary.quantities import ALL_KINDS, MEAN_LOG, MODEL_WIDE, TRAIN, Quantity
from study.vocabulary.statuses import BROKEN

MOST_RULES = 8
NARROW = 2.5
"""Width of a panel, in inches, below which its legend has predictions in parentheses."""
MARKER, WIDEST = 3.6, 10.0
"""Points: what a marker with its bar takes beside those of other rules, and what all may take."""
PER_LAYER = "one per seed, the mean over layers of the log; bars: 5th to 95th percentile of layers"
"""The points of :func:`layer_laws`, for :func:`fine_print`."""


@dataclass(frozen=True)
class Law:
    """A statistic against the rank, for one rule at one step.

    - ``rank``, ``value``: one point per cell;
    - ``lost``: ranks of cells that had diverged or got stuck by this step;
    - ``fit``: the row of ``exponents``, if there is one;
    - ``spread``: for a statistic per layer, the 5th and 95th percentile over layers by rank
      (columns ``low`` and ``high``).
    """

    rule: Rule
    rank: np.ndarray
    value: np.ndarray
    lost: np.ndarray
    fit: "pd.Series | None"
    spread: pd.DataFrame | None = None


@dataclass(frozen=True)
class Measured:
    """A family with the steps at which at least two finite ranks have a value."""

    family: Family
    steps: list[int]


def whole_model(site: str, stat: str) -> dict[str, str]:
    """The columns that select fits over the whole model, on the training batch."""
    where = {"site": site, "stat": stat, "batch": TRAIN}
    return {**where, "layer": MODEL_WIDE, "kind": MODEL_WIDE}


def over_layers(site: str, stat: str, batch: str = TRAIN) -> dict[str, str]:
    """The columns that select fits of the mean over layers of the log."""
    return {"site": site, "stat": stat, "batch": batch, "layer": MEAN_LOG, "kind": ALL_KINDS}


def measured(cells: pd.DataFrame, series: pd.DataFrame, most: int) -> tuple[list[Measured], str]:
    """At most ``most`` families with two ranks in ``series``, and a sentence on what is left out.

    Raises :class:`Absent` if there is none.
    """
    found = []
    for family in families(cells):
        ranks = family.cells.loc[np.isfinite(family.cells["rank"]), ["cell_id", "rank"]]
        counts = series.merge(ranks, on="cell_id").groupby("step")["rank"].nunique()
        if (counts > 1).any():
            found.append(Measured(family, sorted(int(step) for step in counts.index[counts > 1])))
    if not found:
        raise Absent("a fit against the rank needs two ranks measured at one step")
    shown, left_out = most_varied(found, most, lambda one: one.family)
    rules = rules_left_out([one.family for one in shown], MOST_RULES)
    return shown, f"{left_out} {rules}".strip()


def panels(
    shown: Sequence[Family],
    columns: int,
    *,
    ratio: float,
    more: int = 1,
    labels: Sequence[str] = (),
    **options: Any,
) -> tuple[Figure, list[np.ndarray]]:
    """:func:`style.panels`, a row for each family, with room for the legends above the panels.

    ``more``: the entries of a legend beside the rules, with its heading. ``labels``: of the rows;
    by default those of the families.
    """
    entries = min(max(len(family.rules) for family in shown), MOST_RULES) + more
    rows = math.ceil(len(shown) / options.get("beside", 1))
    labels = labels or [family.label for family in shown]
    above = 0.3 + 0.14 * entries * rows
    return style.panels(labels, columns, ratio=ratio, above=above, **options)


def laws(
    family: Family, series: pd.DataFrame, exponents: pd.DataFrame, *, step: int, **where: str
) -> list[Law]:
    """The family's laws at ``step``, one per rule; ``where`` selects the fit.

    Cells of infinite rank have no place on the axis and are left out.
    """
    at_step = series[series["step"] == step]
    cells = family.cells[np.isfinite(family.cells["rank"])]
    found = []
    for rule in family.rules[:MOST_RULES]:
        mine = cells[cells["rule"] == rule]
        points = mine.merge(at_step, on="cell_id").sort_values("rank", kind="stable")
        lost = mine[mine["status"].isin(BROKEN) & ~mine["cell_id"].isin(set(points["cell_id"]))]
        rank, value = points["rank"].to_numpy(float), points["value"].to_numpy(float)
        fit = fit_of(exponents, family, rule, step=step, **where)
        if len(points) or len(lost):
            found.append(Law(rule, rank, value, lost["rank"].to_numpy(float), fit))
    return found


def layer_laws(
    family: Family, series: pd.DataFrame, exponents: pd.DataFrame, step: int, where: dict[str, str]
) -> list[Law]:
    """The laws of the mean over layers of the log statistic, each with its spread over layers."""
    cells = family.cells[["cell_id", "rule", "rank", "seed"]]
    at_step = series[series["step"] == step]
    logs = at_step.assign(log=np.log(at_step["value"])).merge(
        cells[np.isfinite(cells["rank"])], on="cell_id"
    )
    # As in the fits: within a seed the same layers at every rank. A layer that is missing at some
    # ranks would otherwise look like a slope.
    expected = logs.groupby(["rule", "seed"])["cell_id"].transform("nunique")
    present = logs.groupby(["rule", "seed", "layer"])["cell_id"].transform("nunique")
    logs = logs[present == expected]
    means = (
        np.exp(logs.groupby("cell_id")["log"].mean()).reset_index(name="value").assign(step=step)
    )
    found = []
    for law in laws(family, means, exponents, step=step, **where):
        mine = logs[logs["rule"] == law.rule]
        layers = mine.groupby(["rank", "layer"])["log"].mean().groupby("rank")
        spread = pd.DataFrame(
            {"low": np.exp(layers.quantile(0.05)), "high": np.exp(layers.quantile(0.95))}
        )
        found.append(dataclasses.replace(law, spread=spread))
    return found


def fit_of(
    exponents: pd.DataFrame, family: Family, rule: Rule, **where: object
) -> "pd.Series | None":
    """The one row of ``exponents`` that :func:`rows_of` finds; None if it finds none or several."""
    rows = rows_of(exponents, family, rule, **where)
    return rows.iloc[0] if len(rows) == 1 else None


def rows_of(exponents: pd.DataFrame, family: Family, rule: Rule, **where: object) -> pd.DataFrame:
    """The rows of ``exponents`` of this family and rule with the values ``where`` of columns."""
    rows = exponents
    keys = {**where, "scaling": rule.scaling, "exponent_p": rule.p, **family.keys}
    for column, value in keys.items():
        if len(rows) and column in rows:
            rows = rows[_equal(rows[column], value)]
    return rows


def fits(
    exponents: pd.DataFrame, family: Family, rule: Rule, quantity: Quantity, batch: str = TRAIN
) -> pd.DataFrame:
    """The quantity's fits for one family and rule: one row per step, in order."""
    rows = exponents[pooled_rows_of(quantity, exponents, batch)] if len(exponents) else exponents
    return rows_of(rows, family, rule).sort_values("step") if len(rows) else rows


def _equal(column: "pd.Series", value: Any) -> Any:
    if pd.isna(value):
        return column.isna()
    if is_numeric_dtype(column):
        return np.isclose(column, value, rtol=1e-9, atol=0)
    return column == value


def draw(
    ax: Axes,
    found: Sequence[Law],
    family: Family,
    *,
    heading: str,
    inches: float,
    curved: Collection[Rule] = (),
    more: Sequence[tuple[Line2D, str]] = (),
) -> None:
    """Draw a family's laws into a panel ``inches`` wide. The legend above it has the exponents.

    - ``curved``: rules whose predicted curve the caller draws in place of the straight line;
    - ``more``: further entries of the legend.

    gids: ``points|line|band|theory|spread|lost <scaling> p=<p>``.
    """
    handles: list[Any] = []
    labels: list[str] = []
    for number, law in enumerate(found):
        colour = style.tint(law.rule, family.rules)
        shift = min(MARKER, WIDEST / len(found)) * (number - (len(found) - 1) / 2)
        aside = _aside(ax, shift if law.spread is not None else 0.0)
        points = _draw_points(ax, law, family, colour, aside)
        line = _draw_fit(ax, law, colour, straight=law.rule not in curved)
        handles.append((*line, *points))
        labels.append(_exponent(law, short=inches < NARROW))
        if law.fit is not None and np.isfinite(law.fit["predicted"]):
            theory = style.number(law.fit["predicted"])
            labels[-1] += f" ({theory})" if inches < NARROW else f", theory {theory}"
        if law.spread is not None and len(law.spread):
            _draw_spread(ax, law, colour, aside)
    place = ax.get_subplotspec()
    if all(law.fit is None for law in found) and not (place is None or place.is_first_col()):
        handles, labels = [], []  # the legend of the first panel has the names
    handles += [line for line, _ in more]
    labels += [name for _, name in more]
    style.rank_axis(ax, family.finite_ranks, inches)
    ax.set_yscale("log")
    style.legend_above(ax, handles, labels, heading)


def _aside(ax: Axes, points: float) -> Transform:
    """A shift by ``points`` on the page, not in the data.

    It keeps the markers and the bars of several rules at one rank apart.
    """
    return ax.transData + ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)


def _draw_points(ax: Axes, law: Law, family: Family, colour: Any, aside: Transform) -> list[Line2D]:
    """A hollow marker per cell. A diverged cell has no value: its cross is at the bottom."""
    who = style.gid(law.rule)
    if len(law.lost):
        bottom, place = np.full(len(law.lost), 0.03), ax.get_xaxis_transform()
        ax.plot(law.lost, bottom, color=colour, transform=place, gid=f"lost {who}", **style.CROSS)
    # Matplotlib leaves shifted artists out when it chooses the limits.
    ax.update_datalim(np.column_stack([law.rank, law.value]))
    look = {"color": colour, "marker": style.marker(law.rule, family.rules), **style.HOLLOW}
    return ax.plot(law.rank, law.value, transform=aside, zorder=4, gid=f"points {who}", **look)


def _draw_fit(ax: Axes, law: Law, colour: Any, *, straight: bool) -> list[Line2D]:
    """The fitted line with its band and, if ``straight``, the predicted line as dots upon it."""
    if law.fit is None:
        return []
    who = style.gid(law.rule)
    along = np.geomspace(law.fit["rank_min"], law.fit["rank_max"], 65)
    middle, low, high = fitted(law.fit, along)
    style.band(ax, along, low, high, colour, f"band {who}", zorder=2)
    line = ax.plot(along, middle, color=colour, zorder=3, gid=f"line {who}")
    if not straight or not np.isfinite(law.fit["predicted"]):
        return line
    predicted, *_ = fitted({**law.fit, "exponent": law.fit["predicted"]}, along)
    dotted = style.keywords(color=style.INK, linestyle=style.DOTTED, linewidth=1.5)
    ax.plot(along, predicted, zorder=3.2, gid=f"theory {who}", **dotted)
    return line


def _draw_spread(ax: Axes, law: Law, colour: Any, aside: Transform) -> None:
    """A bar per rank from ``low`` to ``high``, behind the markers."""
    spread = law.spread
    assert spread is not None
    low, high, who = spread["low"], spread["high"], f"spread {style.gid(law.rule)}"
    style.bars(ax, spread.index, low, high, colour, who, width=0.6, transform=aside, zorder=2.2)
    ax.update_datalim([(spread.index[0], low.min()), (spread.index[0], high.max())])


def _exponent(law: Law, *, short: bool) -> str:
    """``LoRA  −0.50 [−0.52, −0.48]``; with three digits if the interval is narrow.

    ``short``: two digits, and a rule without a p of its own is ``p = 0.75``.
    """
    name = f"p = {law.rule.p:g}" if short and not law.rule.has_own_p else style.name(law.rule)
    if law.fit is None:
        return name
    low, high = law.fit["ci_low"], law.fit["ci_high"]
    digits = 3 if high - low < 0.02 and not short else 2
    gap = "  " if law.rule.has_own_p else ": "  # the name ends with a number
    text = f"{name}{gap}{style.number(law.fit['exponent'], digits)}"
    if np.isfinite(high - low):
        text += f" [{style.number(low, digits)}, {style.number(high, digits)}]"
    return text


def fine_print(
    drawn: Sequence[Law],
    points: str = "one per seed",
    *,
    straight: bool = True,
    inches: float = NARROW,
) -> str:
    """What points, lines, bands, brackets and crosses mean.

    ``straight``: whether predictions are drawn as straight lines. ``inches``: the width of a panel.
    """
    fits = [law.fit for law in drawn if law.fit is not None]
    sentences = [f"Points: {points}."]
    if fits:
        sentences.append("Lines: power-law fits. Legend: exponents.")
        sentences.append(sentence_on_ci("Brackets, bands", {fit["interval"] for fit in fits}))
    if any(np.isfinite(fit["predicted"]) for fit in fits):
        if straight:
            sentences.append("Dotted: predicted slope, through the centre of the fit.")
        if inches < NARROW:
            sentences.append("In parentheses: the predicted exponent.")
    if any(len(law.lost) for law in drawn):
        sentences.append("×: a run at this rank had diverged or got stuck by then.")
    return " ".join(filter(None, sentences))
