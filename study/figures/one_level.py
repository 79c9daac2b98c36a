"""Best learning rates of many models on one level with their laws, and r_sign of each model."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.analysis.rate_theory import Curve, Fit
from study.figures import style

KINDS = {"dense models": "#d9730d", "mixtures of experts": "#2b6fc2"}
MARKERS = {"": "o", "lowest": "v", "highest": "^"}
STYLES = (":", "--", "-")
MOST = 1000.0
"""The largest r_sign that is told apart: above it the curve is the power 1/4."""


@style.paper()
def on_one_level(
    rates: pd.DataFrame, laws: Mapping[str, tuple[Curve, Fit]], models: pd.DataFrame
) -> Figure:
    """The best rates of dense models and of mixtures of experts against the rank, and r_sign of
    each model against its size.

    ``rates``: of :func:`~study.analysis.rate_theory.fit_rates`, with ``experts``. ``laws`` cross at
    rank 8, and the last one gives the levels. ``models``: ``billions``, ``experts``, and r_sign as
    ``value``, ``low``, ``high``.
    """
    page = style.figure(1, 3, ratio=1.0, above=0.5)
    left, middle, right = page.subplots(1, 3)
    middle.sharey(left)
    at = pd.DataFrame({"rank": np.r_[8, np.geomspace(1, 128, 99)]})
    at = at.assign(gamma=1 / at["rank"])
    *_, (curve, best) = laws.values()
    for ax, (kind, colour), experts in zip((left, middle), KINDS.items(), (0, 1), strict=True):
        own, here = (rows[rows["experts"] == experts] for rows in (rates, models))
        y = np.exp(own["log_lr"] - own["group"].map(best.levels) - curve(at, best.found)[0])
        for edge, marker in MARKERS.items():
            beyond = own["edge"] == edge
            look = {
                "color": colour,
                "ms": 3.5,
                "mfc": "none",
                "ls": "none",
                "gid": f"{kind} {edge}",
            }
            ax.plot(own["rank"][beyond], y[beyond], marker=marker, **look)
        for (of_law, found), line in zip(laws.values(), STYLES, strict=True):
            z = of_law(at, found.found)
            ax.plot(at["rank"][1:], np.exp(z - z[0])[1:], color=style.INK, ls=line, lw=0.9)
        style.rank_axis(ax, [1, 4, 16, 64, 128], 2.0)
        ax.set_title(kind, color=colour)
        x, high = here["billions"], here["high"].clip(upper=MOST)
        style.bars(right, x, here["low"].clip(lower=1), high, colour, f"bars {kind}")
        right.plot(x, here["value"].clip(1, MOST), "o", color=colour, ms=3, gid=f"models {kind}")
    style.y_axis([left], "best learning rate", "over the law at rank 8")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="weights in billions",
        title=r"$r_{\mathrm{sign}}$ of each model",
    )
    looks = {law: {"color": style.INK, "ls": line} for law, line in zip(laws, STYLES, strict=True)}
    style.legend(page, looks, 3)
    return style.finish(page, "Triangles: the best rate lies beyond the rates tried.")
