"""Laws in the rank: a statistic against the rank on log-log axes, with the fitted line, its band and its exponent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation
from pandas.api.types import is_numeric_dtype

from study.analysis import fitted
from study.figures import style
from study.figures.selection import Absent, Family, Rule, families, most_varied, rules_left_out

MOST_RULES = 8


@dataclass(frozen=True)
class Law:
    """A statistic of one rule at one step: a point per cell, and the fit where the analysis has one."""

    rule: Rule
    rank: np.ndarray
    value: np.ndarray
    lost: np.ndarray
    """Ranks of cells that had diverged by then."""
    fit: "pd.Series | None"
    """The fit's row of ``exponents``."""
    spread: pd.DataFrame | None = None
    """Per rank the 5th and 95th percentile over layers (columns low, high), where the statistic is one per layer."""


@dataclass(frozen=True)
class Measured:
    """A family with the steps at which at least two finite ranks have a value."""

    family: Family
    steps: list[int]


def measured(cells: pd.DataFrame, series: pd.DataFrame, most: int) -> tuple[list[Measured], str]:
    """The families, at most ``most``, in which ``series`` says something about the rank, and a sentence on the rest.

    Raises :class:`Absent` where there is none.
    """
    told = []
    for family in families(cells):
        ranks = family.cells.loc[np.isfinite(family.cells["rank"]), ["cell_id", "rank"]]
        counts = series.merge(ranks, on="cell_id").groupby("step")["rank"].nunique()
        if (counts > 1).any():
            told.append(Measured(family, sorted(int(step) for step in counts.index[counts > 1])))
    if not told:
        raise Absent("a law in the rank needs at least two ranks measured at one step")
    shown, left_out = most_varied([one.family for one in told], most)
    kept = [one for one in told if any(one.family is family for family in shown)]
    return kept, f"{left_out} {rules_left_out(shown, MOST_RULES)}".strip()


def laws(
    family: Family, series: pd.DataFrame, exponents: pd.DataFrame, *, step: int, **where: str
) -> list[Law]:
    """The family's laws at ``step``, a rule each; ``where`` names the fit (site, stat, batch, layer, kind).

    A cell of infinite rank has no place on the axis and is left out.
    """
    at_step = series[series["step"] == step]
    cells = family.cells[np.isfinite(family.cells["rank"])]
    found = []
    for rule in family.rules[:MOST_RULES]:
        mine = cells[cells["rule"] == rule]
        points = mine.merge(at_step, on="cell_id").sort_values("rank", kind="stable")
        lost = mine[(mine["status"] == "diverged") & ~mine["cell_id"].isin(set(points["cell_id"]))]
        rank, value = points["rank"].to_numpy(float), points["value"].to_numpy(float)
        fit = fit_of(exponents, family, rule, step=step, **where)
        if len(points) or len(lost):
            found.append(Law(rule, rank, value, lost["rank"].to_numpy(float), fit))
    return found


def fit_of(
    exponents: pd.DataFrame, family: Family, rule: Rule, **where: object
) -> "pd.Series | None":
    """The row of ``exponents`` with this family, rule and ``where`` (site, stat, batch, step, layer, kind), if any."""
    rows = rows_of(exponents, family, rule, **where)
    return rows.iloc[0] if len(rows) == 1 else None


def rows_of(exponents: pd.DataFrame, family: Family, rule: Rule, **where: object) -> pd.DataFrame:
    """The rows of ``exponents`` with this family, rule and ``where``."""
    rows = exponents
    keys = {**where, "scaling": rule.scaling, "exponent_p": rule.p, **family.keys}
    for column, value in keys.items():
        if len(rows) and column in rows:
            rows = rows[_equal(rows[column], value)]
    return rows


def _equal(column: "pd.Series", value: Any) -> Any:
    if pd.isna(value):
        return column.isna()
    return (
        np.isclose(column, value, rtol=1e-9, atol=0)
        if is_numeric_dtype(column)
        else column == value
    )


def draw(
    ax: Axes,
    found: Sequence[Law],
    family: Family,
    *,
    heading: str,
    inches: float,
    curved: Mapping[Rule, float] | None = None,
    more: Sequence[tuple[Line2D, str]] = (),
) -> None:
    """Draw a family's laws into one panel, ``inches`` wide, with the slopes in a legend above it, ``more`` below them.

    ``curved``: by rule, the slope of a theory's curve that the caller draws, said behind the rule's own.

    gids: ``points|line|band|theory|spread|lost <scaling> p=<p>``.
    """
    handles: list[Any] = []
    labels: list[str] = []
    curved = curved or {}
    for place, law in enumerate(found):
        colour, who = style.tint(law.rule, family.rules), style.gid(law.rule)
        hollow: dict[str, Any] = {
            "markerfacecolor": "white",
            "markeredgewidth": 0.8,
            "linestyle": "none",
            "zorder": 4,
        }
        mark = style.marker(law.rule, family.rules)
        points = ax.plot(
            law.rank, law.value, color=colour, marker=mark, gid=f"points {who}", **hollow
        )
        line, theory = _draw_fit(ax, law, colour)
        handles.append((*line, *points))
        labels.append(
            _slope(law)
            + (f", theory {style.number(curved[law.rule])}" if law.rule in curved else "")
        )
        if theory:
            said = f"theory {style.number(law.fit['predicted'])}"  # type: ignore[index]
            if inches < 2.5:  # no room for it behind the slope
                handles += theory
                labels.append(said)
            else:
                labels[-1] += f", {said}"
        if law.spread is not None and len(law.spread):
            _draw_spread(
                ax, law.spread, colour, f"spread {who}", aside=place - (len(found) - 1) / 2
            )
        if len(law.lost):  # where it would have been is not known: on the floor, at its rank
            floor: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "gid": f"lost {who}"}
            ax.plot(law.lost, np.full(len(law.lost), 0.03), color=colour, **style.CROSS, **floor)
    handles += [line for line, _ in more]
    labels += [name for _, name in more]
    style.rank_axis(ax, family.finite_ranks, inches)
    ax.set_yscale("log")
    above: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.02),
        "alignment": "left",
    }
    ax.legend(handles, labels, title=heading, title_fontsize=8, **above)


def _draw_fit(ax: Axes, law: Law, colour: Any) -> tuple[list[Line2D], list[Line2D]]:
    """The fitted line with its band and, beneath it, the predicted one: a good theory shows as beads on the line."""
    if law.fit is None:
        return [], []
    who = style.gid(law.rule)
    along = np.geomspace(law.fit["rank_min"], law.fit["rank_max"], 65)
    middle, low, high = fitted(law.fit, along)
    ax.fill_between(
        along, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2, gid=f"band {who}"
    )
    line = ax.plot(along, middle, color=colour, zorder=3, gid=f"line {who}")
    if not np.isfinite(law.fit["predicted"]):
        return line, []
    predicted, *_ = fitted({**law.fit, "exponent": law.fit["predicted"]}, along)
    dotted: dict[str, Any] = {"color": style.INK, "linestyle": (0, (0.7, 1.8)), "linewidth": 1.8}
    return line, ax.plot(along, predicted, zorder=2.5, gid=f"theory {who}", **dotted)


def _draw_spread(ax: Axes, spread: pd.DataFrame, colour: Any, gid: str, aside: float) -> None:
    """A bar per rank from ``low`` to ``high``, moved aside on the page, not in the data, from another rule's bar."""
    points = ScaledTranslation(aside * 2.6 / 72, 0, ax.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]
    bars: dict[str, Any] = {
        "color": colour,
        "alpha": 0.3,
        "linewidth": 2.2,
        "zorder": 1,
        "gid": gid,
    }
    ax.vlines(spread.index, spread["low"], spread["high"], transform=ax.transData + points, **bars)
    ax.update_datalim(
        [(spread.index[0], spread["low"].min()), (spread.index[0], spread["high"].max())]
    )


def _slope(law: Law) -> str:
    """``LoRA  −0.50 [−0.52, −0.48]``; with a third digit where the interval is that narrow."""
    if law.fit is None:
        return style.name(law.rule)
    low, high = law.fit["ci_low"], law.fit["ci_high"]
    digits = 3 if high - low < 0.02 else 2
    gap = ": " if law.rule.scaling == "power" else "  "  # a name that ends with a number
    said = f"{style.name(law.rule)}{gap}{style.number(law.fit['exponent'], digits)}"
    return (
        f"{said} [{style.number(low, digits)}, {style.number(high, digits)}]"
        if np.isfinite(high - low)
        else said
    )


def fine_print(drawn: Sequence[Law], point: str = "one per seed") -> str:
    """What points, lines, bands, brackets and crosses are, in a few sentences."""
    fits = [law.fit for law in drawn if law.fit is not None]
    said = [f"Points: {point}."]
    if fits:
        over = {
            "seeds": "over seeds",
            "ranks": "over ranks, there being one seed",
            "none": "none with two ranks",
        }
        kinds = " or ".join(
            over[kind] for kind in over if kind in {fit["interval"] for fit in fits}
        )
        said.append(
            f"Lines: fits; legend: their slopes in log–log with 95% interval ({kinds}); bands: the lines' own."
        )
    if any(np.isfinite(fit["predicted"]) for fit in fits):
        said.append("Dotted: the slope that theory predicts, through the fit's centre.")
    if any(len(law.lost) for law in drawn):
        said.append("×: a run at this rank had diverged by then.")
    return " ".join(said)
