"""The scaling exponents of single layers: a map over blocks and projections."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from study.errors import printable
from study.figures import laws, style
from study.figures.captions import on_batch, plain
from study.figures.selection import Absent, Family, Rule, Tables, holding
from study.vocabulary.quantities import FORWARD_OUT, TRAIN

SITE, STAT = FORWARD_OUT.site, FORWARD_OUT.stat
MOST_RULES = 3
COLOURS = "RdBu_r"
"""Red grows with rank, blue shrinks, white is stable. Safe for colour-blind readers; no rule has
these hues."""


@style.paper()
def exponent_heatmap(tables: Tables) -> Figure:
    """Scaling exponent of the adapter output's rms on the training batch for every layer, by block
    and projection, at the last probed step.

    A panel per rule. All panels share one colour map, centred at 0. Hatched layers have no
    exponent, or one without an interval; blank layers have no adapter.
    """
    exponents, what = tables.exponents, f"no exponent of a single layer's {SITE} {STAT}"
    if len(exponents):
        here = (exponents["site"] == SITE) & (exponents["stat"] == STAT)
        exponents = exponents[here & (exponents["batch"] == TRAIN) & (exponents["block"] >= 0)]
    if exponents.empty:
        raise Absent(f"{what} in the tables: analyze the study first")
    drawn, left_out = holding(
        tables.cells,
        lambda family: _maps(family, tables.probes, exponents),
        f"{what} at two ranks",
        rules=MOST_RULES,
    )
    shown = [layers for maps in drawn.values() for layers in maps.values()]
    columns, kinds = max(map(len, drawn.values())), max(one["kind"].nunique() for one in shown)
    page, grid = style.panels(list(drawn), columns, ratio=0.1, column=style.FULL)
    # A row of panels: the map, its heading and axis, and the heading of the setting.
    inches = max(0.16 * kinds, 0.5) + 0.75 + (0.2 if len(drawn) > 1 else 0)
    page.set_figheight(len(drawn) * inches + 0.3)
    every = pd.concat(shown)
    reach = float(every["exponent"].abs().max()) or 1.0
    for panels, maps in zip(grid, drawn.values(), strict=True):
        for ax, (rule, layers) in style.each(panels, maps.items()):
            _draw(ax, rule, layers, Normalize(-reach, reach))
            _head(ax, rule, layers["exponent"].dropna(), lines=1 if columns < 3 else 2)
        panels[0].set_ylabel("projection")
        place: dict[str, Any] = {"aspect": 14, "pad": 0.015, "fraction": 0.04}
        bar = page.colorbar(panels[0].collections[0], ax=list(panels), **place)
        bar.set_label("scaling exponent", labelpad=3)
        ticks = MaxNLocator(min(5, 1 + kinds // 2), steps=[1, 2, 5, 10], symmetric=True)
        bar.ax.yaxis.set_major_locator(ticks)
        bar.ax.set_label("legend")
        bar.outline.set_visible(False)
    steps = " or ".join(map(str, sorted(set(every["step"]))))
    return style.finish(
        page,
        f"Slope of log {FORWARD_OUT.symbol} in log $r$ at step {steps}: red grows with rank, blue "
        "shrinks. In brackets: 5th to 95th percentile over layers.",
        "" if every["sure"].all() else "Hatched: no exponent, or one without an interval.",
        on_batch(),
        left_out,
    )


def _maps(
    family: Family, probes: pd.DataFrame, exponents: pd.DataFrame
) -> dict[Rule, pd.DataFrame]:
    """By rule, the adapted layers with their exponents at the last step that has any.

    Columns: ``layer``, ``block``, ``kind``, ``step``, ``exponent``, ``sure`` (whether it has an
    interval).
    """
    own = probes[(probes["site"] == SITE) & probes["cell_id"].isin(set(family.cells["cell_id"]))]
    places = own.loc[own["block"] >= 0, ["layer", "block", "kind"]].drop_duplicates()
    places = places.astype({"layer": str, "kind": str})
    found = {}
    for rule in family.rules[:MOST_RULES]:
        rows = laws.rows_of(exponents, family, rule)
        if len(rows) and len(places):
            step = int(rows["step"].max())
            rows = rows[rows["step"] == step].astype({"layer": str})
            columns = ["layer", "exponent", "ci_low", "ci_high"]
            layers = places.merge(rows[columns], on="layer", how="left").assign(step=step)
            sure = np.isfinite(layers["exponent"] + layers["ci_high"] - layers["ci_low"])
            found[rule] = layers.assign(sure=sure)
    return found


def _draw(ax: Axes, rule: Rule, layers: pd.DataFrame, colours: Normalize) -> None:
    """The map of one rule."""
    kinds = tiles(ax, layers, "exponent", COLOURS, colours, f"map {style.gid(rule)}")
    for layer in layers[~layers["sure"]].to_dict("records"):
        who = f"hatched {style.gid(rule)} {layer['kind']} {layer['block']}"
        place = layer["block"] - 0.5, kinds.index(layer["kind"]) - 0.5
        face = "none" if np.isfinite(layer["exponent"]) else "white"
        look: dict[str, Any] = {"facecolor": face, "edgecolor": style.FAINT, "hatch": "//////"}
        ax.add_patch(Rectangle(place, 1, 1, linewidth=0, gid=who, **look))


def tiles(
    ax: Axes, layers: pd.DataFrame, column: str, cmap: str, colours: Normalize, gid: str
) -> list[str]:
    """A tile per layer, by ``kind`` and ``block``, in the colour of a column; blank if it is not
    finite. Returns the kinds from top to bottom."""
    kinds, blocks = list(dict.fromkeys(layers["kind"])), int(layers["block"].max()) + 1
    table = layers.pivot_table(index="kind", columns="block", values=column, observed=True)
    ax.pcolormesh(
        np.arange(blocks + 1) - 0.5,
        np.arange(len(kinds) + 1) - 0.5,
        np.ma.masked_invalid(table.reindex(index=kinds, columns=range(blocks))),
        cmap=cmap,
        norm=colours,
        edgecolors="white",
        linewidth=0.3,
        gid=gid,
    )
    ax.set_yticks(range(len(kinds)), [plain(printable(k.removesuffix("_proj"), 40)) for k in kinds])
    ticks = MaxNLocator(6 if blocks > 4 else blocks, steps=[1, 2, 5, 10], integer=True)
    ax.xaxis.set_major_locator(ticks)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set(xlim=(-0.5, blocks - 0.5), ylim=(len(kinds) - 0.5, -0.5), xlabel="block")
    ax.tick_params(length=1.5)
    ax.spines[:].set_visible(False)
    return kinds


def _head(ax: Axes, rule: Rule, exponents: "pd.Series[float]", lines: int) -> None:
    """Head a map with its rule, and the median and range of its exponents."""
    heading = style.title(rule, lines)
    if len(exponents):
        middle, low, high = map(style.number, exponents.quantile([0.5, 0.05, 0.95]))
        heading += f"\nmedian {middle}  [{low}, {high}]"
    ax.set_title(heading, color=style.tint(rule, [rule]), linespacing=1.15)
