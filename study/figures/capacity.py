"""Bits that adapters stored against their parameters."""

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from study.analysis.capacity import setting_columns, stored_bits
from study.figures import style
from study.figures.selection import Absent, Family, Tables

LOOKS = [(c, m) for m in "os" for c in ("#2b6fc2", "#d9730d", "#4d8f3a", "#a23b72", "#8c8c8c")]
USUAL = 2.0
"""Bits per parameter of the dashed line: of LoRA Without Regret."""


@style.paper()
def bits_stored(tables: Tables) -> Figure:
    """Bits of random strings that adapters stored after their last pass, against their parameters.

    A line per setting, through the means over seeds; a dot per run.
    """
    table = stored_bits(tables)
    if table.empty or not (table["bits"] > 0).any():
        raise Absent("no stored bits of data=random_strings in the tables")
    table = table[table["bits"] > 0]
    cells = tables.cells[tables.cells["cell_id"].astype(str).isin(table["cell_id"])]
    page, [[ax]] = style.panels(
        [Family((), {}, cells)], 1, ratio=0.45, above=0.3, column=style.FULL
    )
    names, looks = setting_columns(table), dict[str, dict[str, Any]]()
    of_setting = table.groupby([*names, "offered"], observed=True)
    for (_, own), (colour, marker) in zip(of_setting, cycle(LOOKS), strict=False):
        row = own.iloc[0]
        words = [str(row[n]) if isinstance(row[n], str) else f"{row[n]:g} {n}" for n in names]
        label = ", ".join([*words, f"{row['offered'] / 1000:.1f} kbit"])
        looks[label] = {"color": colour, "marker": marker, "markersize": 3}
        ax.plot(own["parameters"], own["bits"], marker, ms=2.5, color=colour, alpha=0.5)
        mean = own.groupby("parameters")["bits"].mean()
        ax.plot(mean.index, mean, gid=f"line {label}", **looks[label])
    for offered in table["offered"].unique():
        ax.axhline(offered, color=style.CONTEXT, ls=style.DOTTED, lw=0.9)
        style.label_end(ax, offered, f"{offered / 1000:.1f} kbit offered", style.CONTEXT)
    ends = np.array([table["parameters"].min() / 1.3, table["parameters"].max() * 1.3])
    ax.plot(ends, USUAL * ends, gid="usual", **style.THEORY)
    looks[f"{USUAL:g} bits a parameter"] = style.THEORY
    ax.set(xscale="log", xlim=ends, xlabel="parameters of the adapter")
    ax.set_ylim(table["bits"].min() / 1.5, 1.5 * table["offered"].max())
    style.log_ticks(ax.xaxis, (ends[0], ends[1]))
    style.y_axis([ax], "bits stored", log=True)
    style.legend(page, looks, 1, "outside center right")
    return style.finish(page, "Pale: single seeds. Dotted: the bits of all strings.")
