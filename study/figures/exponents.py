"""Scaling exponents over training, and in several settings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.verdicts import rows_of_condition
from study.analysis.wording import COMMON, setting_names
from study.figures import style
from study.figures.captions import EXPONENT, on_batch, plain, sentence_on_ci
from study.figures.laws import fits, rows_of
from study.figures.selection import Absent, DrawnRule, Family, Tables, families, holding
from study.vocabulary.quantities import HELDOUT, METRICS, PRIMARY
from study.vocabulary.thresholds import STABLE_RATIO

MOST_RULES, MOST_DIFFERENCES = 6, 12
OPEN = {"markersize": 2.6, "markerfacecolor": "white", "markeredgewidth": 0.7}
SHORT_LINES: dict[str, Any] = {
    "color": style.INK,
    "linestyle": "none",
    "marker": "_",
    "zorder": 3.5,
    "markersize": 8,
    "markeredgewidth": 1.1,
}
SETTING_LOOKS = [{"color": colour, "marker": marker} for colour, marker in style.QUANTITY_LOOKS]
MARKER: dict[str, Any] = {"markersize": 3.4, "linestyle": "none"}
LINE, APART, BELOW = 0.34, 0.09, 0.45  # inches: a line at least, between settings, below a panel


@style.paper()
def exponents_over_training(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities over training, one line per rule. In the grey
    band a quantity keeps its size.

    A panel per quantity, a row of panels per setting. The grey band is the margin of the verdicts:
    a change by less than a factor of 1.5 from the lowest to the highest rank. The two conditions of
    the paper are read on a held-out batch, if the study probed one, as in a report; all other
    quantities are read on the training batch.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    absent = "no primary quantity with an exponent at two steps"
    drawn, left_out = holding(
        tables.cells, lambda family: _fits(family, tables.exponents), absent, rules=MOST_RULES
    )
    every = pd.concat(drawn.values())
    quantities = [quantity for quantity in PRIMARY if quantity.name in set(every["quantity"])]

    columns = len(quantities)
    ratio = 0.95 * columns / 4  # the height does not depend on the number of columns
    options: dict[str, Any] = {"above": 0.3 + 0.45 * len(drawn), "column": style.FULL}
    page, grid = style.panels(list(drawn), columns, ratio=ratio, sharex=True, **options)
    beside = sorted({rule for family in drawn for rule in family.rules[:MOST_RULES]})
    looks = {rule: style.look(rule, beside) | OPEN for rule in beside}
    for panels, (family, rows) in zip(grid, drawn.items(), strict=True):
        for ax, quantity in zip(panels, quantities, strict=True):
            _draw(ax, family.finite_ranks, rows[rows["quantity"] == quantity.name], looks)
            ax.set_title(f"{quantity.noun}\n{quantity.symbol}", linespacing=1.2)
            style.step_axis(ax, rows["step"].to_numpy(int))
        style.y_axis(panels, "scaling exponent", "with rank")
    style.legend(page, {style.name(rule): look for rule, look in looks.items()})
    heldout = set(every.loc[every["batch"] == HELDOUT, "quantity"])
    nouns = " and ".join(quantity.noun for quantity in PRIMARY if quantity.name in heldout)
    return style.finish(
        page,
        sentence_on_ci("Bands", every["interval"]),
        f"Grey: a change by less than a factor of {STABLE_RATIO:g} over these ranks.",
        "Short black lines: theory." if every["predicted"].notna().any() else "",
        f"On the held-out batch: {nouns}; on the training batch: all others."
        if nouns
        else on_batch(),
        left_out,
    )


def _fits(family: Family, exponents: pd.DataFrame) -> pd.DataFrame:
    """The fits of every quantity that some rule has at two steps, with its ``quantity``
    and ``rule``."""
    found, rules = [exponents.iloc[:0]], list[Any](family.rules[:MOST_RULES])
    for quantity in PRIMARY:
        rows = rows_of_condition(quantity, exponents).assign(quantity=quantity.name)
        by_rule = [rows_of(rows, family, rule).assign(rule=rule) for rule in rules]
        if max(map(len, by_rule)) > 1:
            found += by_rule
    return pd.concat(found).sort_values("step")


def _draw(
    ax: Axes,
    ranks: list[float],
    rows: pd.DataFrame,
    looks: Mapping[DrawnRule, Mapping[str, Any]],
) -> None:
    margin = np.log(STABLE_RATIO) / np.log(ranks[-1] / ranks[0])
    ax.axhspan(-margin, margin, color=style.FAINT, alpha=0.13, linewidth=0, zorder=0, gid="level")
    ax.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    by_rule: Any = rows.groupby("rule")
    for rule, fit in by_rule:
        who, look = style.gid(rule), looks[rule]
        step, ends = fit["step"], (fit["ci_low"], fit["ci_high"])
        style.band(ax, step, *ends, look["color"], f"band {who}", zorder=2)
        ax.plot(step, fit["exponent"], **look, zorder=3, gid=f"curve {who}")
        if fit["predicted"].notna().any():
            ax.plot(step, fit["predicted"], gid=f"theory {who}", **SHORT_LINES)


@style.paper()
def exponents_by_setting(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities, on the training batch, in several settings.

    A panel per rule. A quantity is shown at the first and at the last step at which it has an
    exponent. A setting is named by what most others have otherwise. Of several learning rates of an
    optimizer, the lowest one is shown.
    """
    cells, exponents = tables.cells, tables.exponents
    if exponents.empty or cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    cells = cells[cells["lr"] == cells.groupby("optimizer", observed=True)["lr"].transform("min")]
    rows = _exponents(families(cells), exponents)
    names = sorted(dict.fromkeys(rows["setting"]), key=lambda name: name != COMMON)
    if len(names) < 2:
        raise Absent("exponents by setting need two settings, such as two batch sizes")
    looks = dict(zip(names, SETTING_LOOKS, strict=False))
    rows = rows[rows["setting"].isin(looks)]
    rules = sorted(set(rows["rule"]))
    inches = BELOW + rows["place"].nunique() * max(LINE, len(looks) * APART)
    columns = min(len(rules), MOST_RULES)
    options: dict[str, Any] = {"above": 0.35, "column": style.FULL, "sharex": True}
    options |= {"ratio": inches * columns / style.WIDTH[style.FULL]}
    page, [panels] = style.panels([Family((), cells)], columns, **options)
    for ax, rule in style.each(panels, rules):
        _draw_settings(ax, rows, rule, looks)
    style.legend(page, {name: look | MARKER for name, look in looks.items()}, min(3, len(looks)))
    return style.finish(
        page,
        sentence_on_ci("Bars", rows["interval"]),
        "Dotted: theory. Grey line: independent of rank.",
        on_batch(),
        f"{len(looks)} of {len(names)} settings are drawn." if len(looks) < len(names) else "",
        f"{columns} of {len(rules)} rules are drawn." if columns < len(rules) else "",
    )


def _exponents(settings: list[Family], exponents: pd.DataFrame) -> pd.DataFrame:
    """The fits of each primary quantity at its first and last step, with ``setting``, ``rule`` and
    ``place``, which is the quantity and the step."""
    found = []
    for one, name in zip(settings, setting_names([one.words for one in settings]), strict=True):
        for rule in one.rules:
            for order, quantity in enumerate(PRIMARY):
                about: dict[str, Any] = {"setting": name, "rule": rule, "order": order}
                found.append(fits(exponents, one, rule, quantity).assign(**about))
    rows = pd.concat(found)
    steps = rows.groupby("order")["step"]
    rows = rows[(rows["step"] == steps.transform("min")) | (rows["step"] == steps.transform("max"))]
    places = zip(rows["order"], rows["step"], strict=True)
    rows = rows.assign(place=[f"{PRIMARY[n].noun}\nstep {step}" for n, step in places])
    return rows.sort_values(["order", "step"], kind="stable")


def _draw_settings(
    ax: Axes, rows: pd.DataFrame, rule: DrawnRule, looks: Mapping[str, Mapping[str, Any]]
) -> None:
    places = list(dict.fromkeys(rows["place"]))
    apart = 0.8 / len(looks)  # in lines
    shifts = {name: apart * (n - (len(looks) - 1) / 2) for n, name in enumerate(looks)}
    for row in rows[rows["rule"] == rule].to_dict("records"):
        y, look = places.index(row["place"]) + shifts[row["setting"]], looks[row["setting"]]
        who = f"{row['setting']}: {row['place']}".replace("\n", ", ")
        ax.plot([row["exponent"]], [y], **look, **MARKER, zorder=3, gid=f"point {who}")
        ends = [y], row["ci_low"], row["ci_high"], look["color"]
        ax.hlines(*ends, linewidth=0.8, gid=f"bar {who}")
        if np.isfinite(row["predicted"]):
            dots = style.PREDICTED | {"linewidth": 1.4, "zorder": 3.5}
            x, low, high = [row["predicted"]], y - apart / 2, y + apart / 2
            ax.vlines(x, low, high, gid=f"theory {who}", **dots)
    ax.axvline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    ax.set_yticks(range(len(places)), places)
    ax.set_ylim(len(places) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=6)  # a number that does not depend on the layout
    ax.set_xlabel(EXPONENT)
    ax.set_title(style.title(rule), loc="left")


@style.paper()
def differences(rows: pd.DataFrame) -> Figure:
    """How much the exponents and the losses of one study exceed those of another, with intervals:
    the :data:`MOST_DIFFERENCES` largest differences of each.

    ``rows``: those of one study of :func:`study.analysis.compare.compare`.
    """
    names = {"exponent": EXPONENT, "loss": f"{METRICS['eval_loss'].label} (nats)"}
    parts = [rows[rows["what"] == what] for what in names if (rows["what"] == what).any()]
    ranked = (part["difference"].abs().nlargest(MOST_DIFFERENCES).index for part in parts)
    parts = [rows.loc[sorted(index)] for index in ranked]
    sizes = [len(part) + 2 for part in parts]  # two lines for the axis
    page = style.figure(1, 1, ratio=0.1)
    page.set_figheight(0.3 + 0.24 * sum(sizes))
    panels = page.subplots(len(parts), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for ax, part in zip(panels, parts, strict=True):
        ranks = ["" if pd.isna(rank) else f", rank {rank:.0f}" for rank in part["rank"]]
        texts = part["curve"] + ":\n" + part["quantity"] + ranks + ", " + part["at"] + " step"
        y = np.arange(len(part))
        ax.hlines(y, part["ci_low"], part["ci_high"], color=style.INK, linewidth=0.8, gid="bars")
        ax.plot(part["difference"], y, "o", color=style.INK, markersize=3, gid="differences")
        ax.axvline(0, color=style.FAINT, linewidth=0.6)
        ax.set_yticks(y, [plain(text) for text in texts], fontsize=6)
        ax.set(ylim=(len(part) - 0.5, -0.5), xlabel=f"B − A: {names[part['what'].iloc[0]]}")
    return style.finish(page, f"Bars: 95 % CI. At most the {MOST_DIFFERENCES} largest of each.")
