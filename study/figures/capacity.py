"""Bits that adapters stored against their parameters."""

import numpy as np
from matplotlib.figure import Figure

from study.analysis.capacity import stored_bits
from study.figures import style
from study.figures.selection import Absent, Tables, families, most_varied

PER_PARAMETER = (2.0, 0.5)
"""Bits per parameter of the dashed lines."""


@style.paper()
def bits_stored(tables: Tables) -> Figure:
    """Bits of random strings that an adapter stored after its last pass, against its parameters.

    A line per number of strings, whose bits are the dotted line. Points are seeds.
    """
    table = stored_bits(tables)
    if table.empty or not (table["bits"] > 0).any():
        raise Absent("no stored bits of data=random_strings in the tables")
    cells = tables.cells[tables.cells["cell_id"].astype(str).isin(table["cell_id"])]
    apart = ["max_samples", "data_sha256", "lr", "batch_size"]
    shown, left_out = most_varied(families(cells.drop(columns=apart)))
    page, grid = style.panels(shown, 1, ratio=0.8, beside=len(shown))
    counts = sorted(table["offered"].unique())
    ends = np.array([table["parameters"].min() / 1.3, table["parameters"].max() * 1.3])
    for (ax,), family in zip(grid, shown, strict=True):
        own = table[table["cell_id"].isin(family.cells["cell_id"].astype(str))]
        for bits in PER_PARAMETER:
            ax.plot(ends, bits * ends, gid=f"{bits:g} bits", **style.THEORY)
            ax.annotate(f"{bits:g} bits a parameter", (ends[0], bits * ends[0]), fontsize=6.5)
        for offered, rows in own.groupby("offered"):
            colour = style.shade(family.rules[0], offered, counts)
            ax.axhline(offered, color=colour, ls=style.DOTTED, lw=0.9)
            ax.plot(rows["parameters"], rows["bits"], "o", ms=2.5, color=colour, alpha=0.6)
            mean = rows.groupby("parameters")["bits"].mean()
            ax.plot(mean.index, mean, "-", color=colour, gid=f"line {offered:g}")
            style.label_end(ax, offered, f"{offered / 96:g} strings", colour)
        ax.set(xscale="log", xlim=ends, ylim=(table["bits"].clip(lower=50).min() / 1.5, None))
        style.log_ticks(ax.xaxis, tuple(ends))
        ax.set_xlabel("parameters of the adapter")
    style.y_axis([ax for (ax,) in grid], "bits stored", log=True)
    return style.finish(page, "Dotted: the bits offered. Dashed: bits per parameter.", left_out)
