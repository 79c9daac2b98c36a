"""Distance of runs of finite rank from the run of infinite rank.

Theory gives the distance after the first step under SGD at p = 1/2 and under sign-like rules at p =
1 (:func:`study.theory.distance_to_infinite_rank`). On real text it is much smaller if each
direction is weighted by the second moment of the inputs.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.analysis.distances import exponents_of
from study.analysis.predictions import mean_layers
from study.figures import laws, style
from study.figures.selection import Absent, Family, Tables
from study.theory import distance_to_infinite_rank as first_step_distance
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import LIMIT_P, OPTIMIZERS
from study.vocabulary.quantities import ALIGNMENTS, LOSS, MODEL_WIDE, TRAIN
from study.vocabulary.quantities import DISTANCES as LABELS

MOST_ROWS = 4
SERIES = ["cell_id", "step", "layer", "value"]
MEASURES = ("input_weighted", "frobenius", LOSS)
WEIGHTINGS = {"input_weighted": "inputs", "frobenius": "frobenius"}
"""Theory's name of each measure whose first step is known."""
FORMULAS = {
    ("input_weighted", "linear"): r"$\sqrt{(1 + r_\mathrm{align})/r}$",
    ("input_weighted", "sign"): r"$\sqrt{(r_\mathrm{sign} - 1)/r}$",
    ("frobenius", "linear"): r"$\sqrt{(D + 1)/r}$",
    ("frobenius", "sign"): r"$\sqrt{(\pi D / 2 - 1)/r}$",
}
"""That distance, by measure and family of the optimizer."""


@style.paper()
def distance_to_infinite_rank(tables: Tables) -> Figure:
    """Distance of each run's weight change from that of infinite rank, against the rank, after the
    first and the last step.

    Reads ``tables.distances`` (cell_id, rank, scaling, seed, step, layer, kind, measure, distance).
    A row of panels per setting and step, a column per measure.
    """
    table = getattr(tables, "distances", pd.DataFrame())
    if table.empty:
        raise Absent(
            "no distances to infinite rank in the tables: run study distances RESULTS/NAME"
        )
    rows = table.astype({"cell_id": str, "measure": str, "layer": str})
    rows = rows.assign(value=rows["distance"].astype(float))
    rows = rows[np.isfinite(rows["value"]) & (rows["value"] > 0) & (rows["step"] > 0)]
    cells = tables.cells[tables.cells["cell_id"].astype(str).isin(set(rows["cell_id"]))]
    shown, left_out = laws.measured(cells, rows[SERIES], MOST_ROWS)
    exponents = exponents_of(cells, rows)
    measures = [name for name in MEASURES if name in set(rows["measure"])]
    # The last step of every setting, and the first step of as many settings as there is room for.
    few = 2 * len(shown) <= MOST_ROWS
    firsts = set(shown) if few else {next(iter(shown))}
    lines = [
        (family, step)
        for family, steps in shown.items()
        for step in dict.fromkeys([steps[0], steps[-1]] if family in firsts else steps[-1:])
    ][:MOST_ROWS]
    families = [family for family, _ in lines]
    labels = [", ".join(filter(None, (f.label, f"after step {s}"))) for f, s in lines]
    ratio = 0.62 if len(measures) < 3 else 0.8
    options = {"ratio": ratio, "labels": labels, "sharey": False}
    page, grid = laws.panels(families, len(measures), more=2, **options)
    inches = page.get_figwidth() / len(measures) - 0.6
    drawn: list[laws.RankLaw] = []
    theory: set[str] = set()
    for panels, (family, step) in zip(grid, lines, strict=True):
        for ax, measure in zip(panels, measures, strict=True):
            here = rows[(rows["measure"] == measure) & (rows["step"] == step)]
            # Of layers, the mean of the log.
            of_layers = here[here["layer"] != MODEL_WIDE]
            pool = laws.layer_laws if len(of_layers) else laws.laws
            points = (of_layers if len(of_layers) else here)[SERIES]
            found = pool(
                family, points, exponents, step, site=measure, stat="distance", batch=TRAIN
            )
            more = _draw_theory(ax, family, rows, measure) if step == 1 else {}
            theory |= {OPTIMIZERS[family.cells["optimizer"].iloc[0]].family} if more else set()
            laws.draw(ax, found, family, LABELS[measure], inches, more=more)
            unit = "relative" if measure in WEIGHTINGS else "nats"
            style.y_axis([ax], "distance to infinite rank", unit, log=True)
            drawn += found
    return style.finish(
        page,
        laws.fine_print(drawn, laws.PER_LAYER, inches=inches),
        "Dashed: theory for the first step, without a fit." if theory else "",
        "Under SGD, $D - 0.2$ takes the place of $D + 1$ for a uniform $A$."
        if "linear" in theory
        else "",
        left_out,
    )


def _draw_theory(ax: Axes, family: Family, rows: pd.DataFrame, measure: str) -> dict[str, Line2D]:
    """The known distance after the first step, as the mean over layers of the log, and its entry in
    a legend."""
    cell = family.cells.iloc[0]
    init = INITS.get(cell["init"])  # None for an imported adapter
    optimizer = OPTIMIZERS.get(cell["optimizer"])
    if optimizer is None or (measure, optimizer.family) not in FORMULAS:
        return {}
    p = LIMIT_P[optimizer.family]
    if not any(math.isclose(rule.p, p) for rule in family.rules) or init is None or init.q != 0:
        return {}
    ranks = np.geomspace(family.finite_ranks[0], family.finite_ranks[-1], 33)
    how: Any = {"weighting": WEIGHTINGS[measure], "kind": optimizer.family, "init": init.drawn}
    first = rows[(rows["layer"] != MODEL_WIDE) & (rows["step"] == 1)]
    layers = mean_layers(first, ("d_in", "d_out", *ALIGNMENTS), init.kurtosis)
    curves = [first_step_distance(ranks, one, **how) for one in layers]
    log = np.array([np.log(curve) for curve in curves if np.isfinite(curve).all()])
    if not len(log):
        return {}
    (line,) = ax.plot(ranks, np.exp(log.mean(axis=0)), gid=f"known {measure}", **style.THEORY)
    return {f"theory {FORMULAS[measure, optimizer.family]}": line}
