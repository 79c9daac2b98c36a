"""The exponent of every layer's adapter output, as a map over blocks and kinds of projection."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from study.figures import laws, style
from study.figures.selection import (
    Absent,
    Family,
    Rule,
    Tables,
    families,
    most_varied,
    rules_left_out,
)
from study.vocabulary.quantities import MODEL_WIDE

SITE, STAT = "adapter_out", "rms"
MOST_FAMILIES, MOST_RULES = 3, 3
COLOURS = "RdBu_r"
"""Red grows with the rank, blue shrinks, white is level: apart under every colour blindness, and not a rule's hue."""
NO_NUMBER: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": style.FAINT,
    "hatch": "//////",
    "linewidth": 0,
}


@dataclass(frozen=True)
class Map:
    """One rule's layers, kinds by blocks: exponents (NaN: none), where there is an adapter, whose interval is known."""

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
    """Exponents of ``adapter_out`` rms over blocks and kinds, at the last step probed, a panel per rule.

    One colour map for all panels, centred at 0. Hatched: a layer without an exponent, or whose exponent has no
    interval; blank: no adapter there.
    """
    exponents = _layers(tables.exponents)
    if exponents.empty:
        raise Absent(
            f"no exponent of a single layer's {SITE} {STAT} in the tables: analyze the study first"
        )
    maps = [(family, _maps(family, tables.probes, exponents)) for family in families(tables.cells)]
    drawable = [family for family, found in maps if found]
    if not drawable:
        raise Absent(f"no exponent of a single layer's {SITE} {STAT} at two ranks")
    shown, left_out = most_varied(drawable, MOST_FAMILIES)
    drawn = [(family, found) for family, found in maps if any(family is one for one in shown)]

    columns = max(len(found) for _, found in drawn)
    maps_drawn = [one for _, found in drawn for one in found.values()]
    kinds = max(len(one.kinds) for one in maps_drawn)
    inches = (
        max(0.16 * kinds, 0.4) + 0.75 + (0.2 if len(drawn) > 1 else 0)
    )  # the map, its heading and its axis
    page = style.figure(len(drawn), columns, ratio=0.1, above=0.3)
    page.set_figheight(len(drawn) * inches + 0.3)
    finite = np.concatenate([one.exponent[np.isfinite(one.exponent)] for one in maps_drawn])
    reach = float(np.abs(finite).max()) if finite.size else 1.0
    colours = Normalize(-(reach or 1.0), reach or 1.0)
    for part, (_, found) in zip(style.rows(page, [f.label for f, _ in drawn]), drawn, strict=True):
        panels = part.subplots(1, columns, sharey=True, squeeze=False)[0]
        for ax, (rule, one) in zip(panels, found.items(), strict=False):
            _draw(ax, rule, one, colours, columns)
        for ax in panels[len(found) :]:
            ax.set_visible(False)
        panels[0].set_ylabel("kind of projection")
        bar = part.colorbar(
            panels[0].collections[0], ax=list(panels), aspect=14, pad=0.015, fraction=0.04
        )
        bar.set_label("exponent in the rank", labelpad=3)
        bar.ax.yaxis.set_major_locator(
            MaxNLocator(min(5, 1 + kinds // 2), steps=[1, 2, 5, 10], symmetric=True)
        )
        bar.ax.set_label("ladder")
        bar.outline.set_visible(False)
    hatched = any(one.doubtful.any() for one in maps_drawn)
    said = sorted({one.step for one in maps_drawn})
    return style.finish(
        page,
        f"Slope of log rms of $\\gamma BAx$ in log $r$ at step {' or '.join(map(str, said))}; red grows with the rank, "
        "blue shrinks. In brackets: the 5–95% range over layers.",
        "Hatched: no exponent, or one without an interval." if hatched else "",
        left_out,
        rules_left_out(shown, MOST_RULES),
    )


def _layers(exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of single layers."""
    if exponents.empty:
        return exponents
    here = (
        (exponents["site"] == SITE) & (exponents["stat"] == STAT) & (exponents["batch"] == "train")
    )
    return exponents[here & (exponents["block"] >= 0)]


def _maps(family: Family, probes: pd.DataFrame, exponents: pd.DataFrame) -> dict[Rule, Map]:
    """Per rule the layers' exponents at the last step that any of them has."""
    measured = probes[
        (probes["site"] == SITE) & probes["cell_id"].isin(set(family.cells["cell_id"]))
    ]
    places = measured[measured["layer"] != MODEL_WIDE][["layer", "block", "kind"]].drop_duplicates()
    places = places.astype({"layer": str, "kind": str})
    found: dict[Rule, Map] = {}
    for rule in family.rules[:MOST_RULES]:
        rows = laws.rows_of(exponents, family, rule)
        if rows.empty or places.empty:
            continue
        step = int(rows["step"].max())
        rows = rows[rows["step"] == step].astype({"layer": str})
        layers = places.merge(
            rows[["layer", "exponent", "ci_low", "ci_high"]], on="layer", how="left"
        )
        layers["adapted"] = 1.0
        sure = np.isfinite(layers["exponent"]) & np.isfinite(layers["ci_high"] - layers["ci_low"])
        layers["sure"] = sure.astype(float)
        kinds, blocks = list(dict.fromkeys(layers["kind"])), range(int(layers["block"].max()) + 1)
        names = ("exponent", "sure", "adapted")
        grids = {name: layers.pivot(index="kind", columns="block", values=name) for name in names}
        grids = {name: grid.reindex(index=kinds, columns=blocks) for name, grid in grids.items()}
        found[rule] = Map(
            kinds,
            grids["exponent"].to_numpy(float),
            grids["adapted"].eq(1).to_numpy(),
            grids["sure"].eq(1).to_numpy(),
            step,
        )
    return found


def _draw(ax: Axes, rule: Rule, table: Map, colours: Normalize, columns: int) -> None:
    """One rule's map. gids: ``map <rule>``, and ``hatched <rule> <kind> <block>`` where there is no sure number."""
    kinds, blocks = table.kinds, table.exponent.shape[1]
    edges = np.arange(blocks + 1) - 0.5, np.arange(len(kinds) + 1) - 0.5
    values = np.ma.masked_invalid(table.exponent)
    ax.pcolormesh(*edges, values, cmap=COLOURS, norm=colours, gid=f"map {style.gid(rule)}", edgecolors="white",
                  linewidth=0.3)  # fmt: skip
    for row, column in np.argwhere(table.doubtful):
        who = f"hatched {style.gid(rule)} {kinds[row]} {column}"
        value = table.exponent[row, column]
        cell = {**NO_NUMBER, "facecolor": "none" if np.isfinite(value) else "white"}
        if np.isfinite(value) and abs(colours(value) - 0.5) > 0.3:  # on a dark cell
            cell["edgecolor"] = "white"
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, gid=who, **cell))
    ax.yaxis.set_major_locator(FixedLocator(range(len(kinds))))
    ax.yaxis.set_major_formatter(FixedFormatter([kind.removesuffix("_proj") for kind in kinds]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(
        MaxNLocator(6 if blocks > 4 else blocks, steps=[1, 2, 5, 10], integer=True)
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlim=(-0.5, blocks - 0.5), ylim=(len(kinds) - 0.5, -0.5))
    ax.tick_params(length=1.5)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("block")
    heading = style.title(rule, lines=1 if columns < 3 else 2)
    flat = table.exponent[np.isfinite(table.exponent)]
    if flat.size:
        middle, low, high = (style.number(v) for v in np.quantile(flat, [0.5, 0.05, 0.95]))
        heading += f"\nmedian {middle}  [{low}, {high}]"
    ax.set_title(heading, color=style.tint(rule, [rule]), linespacing=1.15)
