"""The scaling exponent of every layer's adapter output, as a map over blocks and projections."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from study.errors import printable
from study.figures import laws, style
from study.figures.captions import on_batch, plain
from study.figures.selection import (
    Absent,
    Family,
    Rule,
    Tables,
    families,
    most_varied,
    rules_left_out,
)
from study.vocabulary.quantities import FORWARD_OUT, MODEL_WIDE, TRAIN

SITE, STAT = FORWARD_OUT.site, FORWARD_OUT.stat
MOST_FAMILIES, MOST_RULES = 3, 3
MOST_KINDS, MOST_BLOCKS = 64, 1024
COLOURS = "RdBu_r"
"""Red grows with rank, blue shrinks, white is stable. Safe for colour-blind readers; no rule has
these hues."""
HATCHED: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": style.FAINT,
    "hatch": "//////",
    "linewidth": 0,
}


@dataclass(frozen=True)
class Map:
    """The layers of one rule, as arrays [kind, block].

    ``exponent``: NaN if there is none. ``adapted``: whether the layer has an adapter. ``sure``:
    whether its exponent has an interval.
    """

    kinds: list[str]
    exponent: np.ndarray
    adapted: np.ndarray
    sure: np.ndarray
    step: int

    @property
    def doubtful(self) -> np.ndarray:
        return self.adapted & ~self.sure


@style.paper()
def exponent_heatmap(tables: Tables) -> Figure:
    """Scaling exponent of the adapter output's rms on the training batch for every layer, by block
    and projection, at the last probed step.

    A panel per rule. All panels share one colour map, centred at 0. Hatched layers have no
    exponent, or one without an interval; blank layers have no adapter.
    """
    exponents = _layers(tables.exponents)
    if exponents.empty:
        raise Absent(
            f"no exponent of a single layer's {SITE} {STAT} in the tables: analyze the study first"
        )
    every = [(family, _maps(family, tables.probes, exponents)) for family in families(tables.cells)]
    drawable = [(family, maps) for family, maps in every if maps]
    if not drawable:
        raise Absent(f"no exponent of a single layer's {SITE} {STAT} at two ranks")
    drawn, left_out = most_varied(drawable, MOST_FAMILIES, lambda one: one[0])

    columns = max(len(maps) for _, maps in drawn)
    shown = [one for _, maps in drawn for one in maps.values()]
    kinds = max(len(one.kinds) for one in shown)
    labels = [family.label for family, _ in drawn]
    page, grid = style.panels(labels, columns, ratio=0.1, column=style.FULL)
    # A row of panels: the map, its heading and axis, and the heading of the setting.
    inches = max(0.16 * kinds, 0.5) + 0.75 + (0.2 if len(drawn) > 1 else 0)
    page.set_figheight(len(drawn) * inches + 0.3)
    colours = _colours(shown)
    for panels, (_, maps) in zip(grid, drawn, strict=True):
        for ax, (rule, one) in zip(style.first(panels, len(maps)), maps.items(), strict=True):
            _draw(ax, rule, one, colours, columns)
        panels[0].set_ylabel("projection")
        _colour_bar(panels, kinds)
    steps = " or ".join(map(str, sorted({one.step for one in shown})))
    return style.finish(
        page,
        f"Slope of log {FORWARD_OUT.symbol} in log $r$ at step {steps}: red grows with rank, blue "
        "shrinks. In brackets: 5th to 95th percentile over layers.",
        "Hatched: no exponent, or one without an interval."
        if any(one.doubtful.any() for one in shown)
        else "",
        on_batch(),
        left_out,
        rules_left_out([family for family, _ in drawn], MOST_RULES),
        shown=[family for family, _ in drawn],
    )


def _colours(shown: list[Map]) -> Normalize:
    finite = np.concatenate([one.exponent[np.isfinite(one.exponent)] for one in shown])
    reach = float(np.abs(finite).max()) if finite.size else 0.0
    return Normalize(-(reach or 1.0), reach or 1.0)


def _colour_bar(panels: np.ndarray, kinds: int) -> None:
    place = {"ax": list(panels), "aspect": 14, "pad": 0.015, "fraction": 0.04}
    bar = panels[0].figure.colorbar(panels[0].collections[0], **place)
    bar.set_label("scaling exponent", labelpad=3)
    bar.ax.yaxis.set_major_locator(
        MaxNLocator(min(5, 1 + kinds // 2), steps=[1, 2, 5, 10], symmetric=True)
    )
    bar.ax.set_label("legend")
    bar.outline.set_visible(False)


def _layers(exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of single layers."""
    if exponents.empty:
        return exponents
    here = (exponents["site"] == SITE) & (exponents["stat"] == STAT) & (exponents["batch"] == TRAIN)
    return exponents[here & (exponents["block"] >= 0)]


def _maps(family: Family, probes: pd.DataFrame, exponents: pd.DataFrame) -> dict[Rule, Map]:
    """By rule, the exponents of the layers at the last step that has any."""
    measured = probes[
        (probes["site"] == SITE) & probes["cell_id"].isin(set(family.cells["cell_id"]))
    ]
    places = measured[measured["layer"] != MODEL_WIDE][["layer", "block", "kind"]].drop_duplicates()
    places = places.astype({"layer": str, "kind": str})
    found: dict[Rule, Map] = {}
    for rule in family.rules[:MOST_RULES]:
        rows = laws.rows_of(exponents, family, rule)
        if len(rows) and len(places):
            found[rule] = _map(places, rows)
    return found


def _map(places: pd.DataFrame, rows: pd.DataFrame) -> Map:
    step = int(rows["step"].max())
    rows = rows[rows["step"] == step].astype({"layer": str})
    layers = places.merge(rows[["layer", "exponent", "ci_low", "ci_high"]], on="layer", how="left")
    sure = np.isfinite(layers["exponent"]) & np.isfinite(layers["ci_high"] - layers["ci_low"])
    layers = layers.assign(adapted=1.0, sure=sure.astype(float))
    kinds, blocks = list(dict.fromkeys(layers["kind"])), range(int(layers["block"].max()) + 1)
    if len(kinds) > MOST_KINDS or len(blocks) > MOST_BLOCKS:
        raise Absent(f"{len(kinds)} kinds of layers in {len(blocks)} blocks do not fit on a map")
    exponent, adapted, sures = (
        layers.pivot(index="kind", columns="block", values=name)
        .reindex(index=kinds, columns=blocks)
        .to_numpy(float)
        for name in ("exponent", "adapted", "sure")
    )
    return Map(kinds, exponent, adapted == 1, sures == 1, step)


def _draw(ax: Axes, rule: Rule, table: Map, colours: Normalize, columns: int) -> None:
    """The map of one rule. gids: ``map <rule>``, ``hatched <rule> <kind> <block>``."""
    kinds, blocks = table.kinds, table.exponent.shape[1]
    ax.pcolormesh(
        np.arange(blocks + 1) - 0.5,
        np.arange(len(kinds) + 1) - 0.5,
        np.ma.masked_invalid(table.exponent),
        cmap=COLOURS,
        norm=colours,
        edgecolors="white",
        linewidth=0.3,
        gid=f"map {style.gid(rule)}",
    )
    for row, column in np.argwhere(table.doubtful):
        who = f"hatched {style.gid(rule)} {kinds[row]} {column}"
        value = table.exponent[row, column]
        cell = {**HATCHED, "facecolor": "none" if np.isfinite(value) else "white"}
        if np.isfinite(value) and abs(colours(value) - 0.5) > 0.3:  # on a dark cell
            cell["edgecolor"] = "white"
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, gid=who, **cell))
    ax.yaxis.set_major_locator(FixedLocator(range(len(kinds))))
    ax.yaxis.set_major_formatter(FixedFormatter([_tick(kind) for kind in kinds]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(
        MaxNLocator(6 if blocks > 4 else blocks, steps=[1, 2, 5, 10], integer=True)
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlim=(-0.5, blocks - 0.5), ylim=(len(kinds) - 0.5, -0.5), xlabel="block")
    ax.tick_params(length=1.5)
    ax.spines[:].set_visible(False)
    heading = style.title(rule, lines=1 if columns < 3 else 2)
    flat = table.exponent[np.isfinite(table.exponent)]
    if flat.size:
        middle, low, high = (style.number(v) for v in np.quantile(flat, [0.5, 0.05, 0.95]))
        heading += f"\nmedian {middle}  [{low}, {high}]"
    ax.set_title(heading, color=style.tint(rule, [rule]), linespacing=1.15)


def _tick(kind: str) -> str:
    return plain(printable(kind.removesuffix("_proj"), 40))
