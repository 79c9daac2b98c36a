"""Every layer of a finished adapter as a tile: its size and its effective rank."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from study.errors import printable
from study.figures import style
from study.figures.captions import plain
from study.figures.selection import Absent


@style.paper()
def adapter_tiles(rows: pd.DataFrame) -> Figure:
    """Size and effective rank of a trained adapter for every layer, by block and projection.

    ``rows``: the table of :func:`study.integrations.auditing.audit`. The size is the norm of
    gamma B A, relative to that of W0 if the base is known. Blank layers have no adapter, or have
    not moved. Raises :class:`Absent` if no layer of a block has moved.
    """
    rows = rows[rows["moved"] & (rows["block"] >= 0)]
    if rows.empty:
        raise Absent("no layer of a block has moved: there is nothing to draw")
    rows = rows.assign(share=rows["effective_rank"] / rows["rank"])
    size, label = "norm", r"$\|\gamma BA\|$"
    if rows["relative"].notna().any():
        size, label = "relative", r"$\|\gamma BA\| / \|W_0\|$"
    page = style.figure(1, 2, ratio=0.1)
    page.set_figheight(max(0.16 * rows["kind"].nunique(), 0.5) + 0.9)
    left, right = page.subplots(1, 2, sharey=True)
    ends = rows[size].min() * 0.99, rows[size].max() * 1.01
    for ax, column, norm, name in (
        (left, size, LogNorm(*ends), label),
        (right, "share", Normalize(0, 1), "effective rank / rank"),
    ):
        tiles(ax, rows, column, norm)
        bar = page.colorbar(ax.collections[0], ax=ax, aspect=14, pad=0.02, fraction=0.05)
        bar.ax.set_label("legend")
        bar.outline.set_visible(False)
        ax.set_title(name, loc="left")
    return style.finish(page, "Blank: no adapter, or a layer that has not moved.")


def tiles(ax: Axes, layers: pd.DataFrame, column: str, colours: Normalize) -> None:
    """A tile per layer, by ``kind`` and ``block``, in the colour of a column; blank if it is not
    finite."""
    kinds, blocks = list(dict.fromkeys(layers["kind"])), int(layers["block"].max()) + 1
    table = layers.pivot_table(index="kind", columns="block", values=column, observed=True)
    ax.pcolormesh(
        np.arange(blocks + 1) - 0.5,
        np.arange(len(kinds) + 1) - 0.5,
        np.ma.masked_invalid(table.reindex(index=kinds, columns=range(blocks))),
        cmap="viridis",
        norm=colours,
        edgecolors="white",
        linewidth=0.3,
        gid=f"tiles {column}",
    )
    ax.set_yticks(range(len(kinds)), [plain(printable(k.removesuffix("_proj"), 40)) for k in kinds])
    ticks = MaxNLocator(6 if blocks > 4 else blocks, steps=[1, 2, 5, 10], integer=True)
    ax.xaxis.set_major_locator(ticks)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set(xlim=(-0.5, blocks - 0.5), ylim=(len(kinds) - 0.5, -0.5), xlabel="block")
    ax.tick_params(length=1.5)
    ax.spines[:].set_visible(False)
