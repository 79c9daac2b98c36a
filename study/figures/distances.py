"""Distance of runs of finite rank from the run of infinite rank.

Theory gives the distance after the first step under SGD at p = 1/2 and under sign-like rules at p =
1 (:func:`study.theory.distance_to_infinite_rank`). On real text it is much smaller if each
direction is weighted by the second moment of the inputs. The cost of rank-free runs of SGD does not
depend on the rank, so they reach ranks whose factors would not fit in memory.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.analysis.distances import exponents_of, runs
from study.figures import laws, style
from study.figures.selection import Absent, Family, Tables
from study.theory import Layer
from study.theory import distance_to_infinite_rank as first_step_distance
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import LIMIT_P, OPTIMIZERS
from study.vocabulary.quantities import ALIGNMENTS, LOSS, MODEL_WIDE, TRAIN
from study.vocabulary.quantities import DISTANCES as LABELS

MOST_ROWS = 4
DEFAULT_INIT = "kaiming"
"""The init of studies whose tables name none."""
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
    """
    rows, _ = _of_cells(tables)
    if rows.empty:
        raise Absent(
            "no distances to infinite rank in the tables: run study distances RESULTS/NAME"
        )
    cells = tables.cells[tables.cells["cell_id"].astype(str).isin(set(rows["cell_id"]))]
    return _figure(cells, rows, explicit=rows.iloc[:0])


@style.paper()
def rank_free_curves(tables: Tables) -> Figure:
    """Distance of rank-free runs from infinite rank, against the rank. Rings show explicit runs,
    which train factors of their rank.

    Reads ``tables.distances``: runs that are cells of the study are explicit, others rank-free.
    """
    explicit, rows = _of_cells(tables)
    if rows.empty:
        raise Absent(
            "no rank-free runs in the tables: study distances RESULTS/NAME "
            "--rank-free 65536,1048576"
        )
    return _figure(runs(rows), rows, explicit)


def _of_cells(tables: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The positive finite distances after step 0: of the study's cells, and of other runs."""
    table = getattr(tables, "distances", pd.DataFrame())
    if len(table) == 0:
        return pd.DataFrame(), pd.DataFrame()
    rows = table.astype({"cell_id": str, "measure": str, "layer": str})
    rows = rows.assign(value=rows["distance"].astype(float))
    rows = rows[np.isfinite(rows["value"]) & (rows["value"] > 0) & (rows["step"] > 0)]
    is_cell = rows["cell_id"].isin(set(tables.cells["cell_id"].astype(str)))
    return rows[is_cell], rows[~is_cell]


def _figure(cells: pd.DataFrame, rows: pd.DataFrame, explicit: pd.DataFrame) -> Figure:
    """A row of panels per setting and step, a column per measure."""
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
    drawn: list[laws.Law] = []
    theory: set[str] = set()
    for panels, (family, step) in zip(grid, lines, strict=True):
        for ax, measure in zip(panels, measures, strict=True):
            here, rings = (
                table[(table["measure"] == measure) & (table["step"] == step)]
                for table in (rows, explicit)
            )
            # Of layers, the mean of the log.
            of_layers = here[here["layer"] != MODEL_WIDE]
            pool = laws.layer_laws if len(of_layers) else laws.laws
            points = (of_layers if len(of_layers) else here)[SERIES]
            found = pool(
                family, points, exponents, step, site=measure, stat="distance", batch=TRAIN
            )
            more = _draw_theory(ax, family, rows, measure) if step == 1 else {}
            theory |= {OPTIMIZERS[family.keys["optimizer"]].family} if more else set()
            more |= _draw_explicit(ax, rings)
            laws.draw(ax, found, family, LABELS[measure], inches, more=more)
            if len(explicit):  # of lower ranks
                ax.set_xlim(left=min(ax.get_xlim()[0], 0.7 * explicit["rank"].min()))
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
        "Rings: explicit runs, which train factors of their rank." if len(explicit) else "",
        left_out,
    )


def _draw_theory(ax: Axes, family: Family, rows: pd.DataFrame, measure: str) -> dict[str, Line2D]:
    """The known distance after the first step, as the mean over layers of the log.

    Returns its entry in a legend, if it is known. gid: ``known <measure>``.
    """
    init = INITS.get(family.keys.get("init", DEFAULT_INIT))  # None for an imported adapter
    optimizer = OPTIMIZERS.get(family.keys.get("optimizer", ""))
    if optimizer is None or (measure, optimizer.family) not in FORMULAS:
        return {}
    p = LIMIT_P[optimizer.family]
    if not any(math.isclose(rule.p, p) for rule in family.rules) or init is None or init.q != 0:
        return {}
    ranks = np.geomspace(family.finite_ranks[0], family.finite_ranks[-1], 33)
    how: Any = {"weighting": WEIGHTINGS[measure], "kind": optimizer.family, "init": init.drawn}
    curves = [first_step_distance(ranks, one, **how) for one in layers_of(rows, init.kurtosis)]
    log = np.array([np.log(curve) for curve in curves if np.isfinite(curve).all()])
    if not len(log):
        return {}
    (line,) = ax.plot(ranks, np.exp(log.mean(axis=0)), gid=f"known {measure}", **style.THEORY)
    return {f"theory {FORMULAS[measure, optimizer.family]}": line}


def layers_of(rows: pd.DataFrame, kurtosis: float) -> list[Layer]:
    """The layers after the first step, as geometric means over cells of the columns ``d_in``,
    ``d_out`` and those of alignments; none if these were not recorded."""
    rows = rows[(rows["layer"] != MODEL_WIDE) & (rows["step"] == 1)]
    names = [name for name in ("d_in", "d_out", *ALIGNMENTS) if name in rows]
    if "d_in" not in names or rows.empty:
        return []
    logs = pd.DataFrame(np.log(rows[names].astype(float))).groupby(rows["layer"].astype(str)).mean()
    found = []
    for values in pd.DataFrame(np.exp(logs)).to_dict("records"):
        given = {str(name): value for name, value in values.items() if np.isfinite(value)}
        found.append(Layer(**given, kurtosis=kurtosis))
    return found


def _draw_explicit(ax: Axes, explicit: pd.DataFrame) -> dict[str, Line2D]:
    """A ring per explicit run: the mean over layers of the log. gid: ``explicit``."""
    rows = explicit[np.isfinite(explicit["rank"].astype(float))] if len(explicit) else explicit
    if rows.empty:
        return {}
    per_layer = rows[rows["layer"] != MODEL_WIDE]
    rows = per_layer if len(per_layer) else rows
    means = rows.assign(log=np.log(rows["value"])).groupby(["rank", "cell_id"])["log"].mean()
    ring = {"marker": "o", "markersize": 5.5, "markerfacecolor": "none", "markeredgewidth": 0.6}
    look = style.HOLLOW | ring | {"color": style.INK, "zorder": 5, "gid": "explicit"}
    (line,) = ax.plot(means.index.get_level_values("rank"), np.exp(means), **look)
    return {"explicit runs": line}
