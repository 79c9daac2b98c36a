"""Distance of runs of finite rank from the run of infinite rank.

The distance after the first step is known, under SGD at p = 1/2 and under sign-like rules at p = 1
(:func:`study.theory.distance_to_infinite_rank`). It is much smaller on real text if each direction
is weighted by the second moment of the inputs. Rank-free runs of SGD, whose cost does not depend on
the rank, reach ranks whose factors would not fit in memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator

from study.analysis.distances import exponents_of, runs
from study.figures import laws, style
from study.figures.selection import Absent, Family, Tables
from study.theory import Layer
from study.theory import distance_to_infinite_rank as first_step_distance
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import LIMIT_P, OPTIMIZERS
from study.vocabulary.quantities import ALIGNMENTS, FORWARD_OUT, LOSS, MODEL_WIDE, TRAIN
from study.vocabulary.quantities import DISTANCES as LABELS

MOST_ROWS = 4
RANK_FREE_ONLY = 2**14
"""Ranks above this are labelled as powers of two."""
DEFAULT_INIT = "kaiming"
"""The init of studies whose tables name none."""
SERIES = ["cell_id", "step", "layer", "value"]


@dataclass(frozen=True)
class Measure:
    """``weighting``: as theory names it, if the first step is known. ``formula``: that distance, by
    the family of the optimizer."""

    weighting: str = ""
    formula: Mapping[str, str] = field(default_factory=dict)


MEASURES = {
    "input_weighted": Measure(
        "inputs",
        {
            "linear": r"$\sqrt{(1 + r_\mathrm{align})/r}$",
            "sign": r"$\sqrt{(r_\mathrm{sign} - 1)/r}$",
        },
    ),
    "frobenius": Measure(
        "frobenius",
        {"linear": r"$\sqrt{(D + 1)/r}$", "sign": r"$\sqrt{(\pi D / 2 - 1)/r}$"},
    ),
    LOSS: Measure(),
}
"""By the values of the column ``measure``."""


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
    return _figure(tables, cells, rows, explicit=rows.iloc[:0])


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
    return _figure(tables, runs(rows), rows, explicit)


def _of_cells(tables: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The positive finite distances after step 0: of the study's cells, and of other runs."""
    table = getattr(tables, "distances", pd.DataFrame())
    if len(table) == 0:
        return pd.DataFrame(), pd.DataFrame()
    rows = table[
        np.isfinite(table["distance"].astype(float)) & (table["distance"] > 0) & (table["step"] > 0)
    ]
    names = {name: rows[name].astype(str) for name in ("cell_id", "measure", "layer")}
    rows = rows.assign(**names, value=rows["distance"])
    is_cell = rows["cell_id"].isin(set(tables.cells["cell_id"].astype(str)))
    return rows[is_cell], rows[~is_cell]


def _figure(
    tables: Tables, cells: pd.DataFrame, rows: pd.DataFrame, explicit: pd.DataFrame
) -> Figure:
    """A row of panels per setting and step, a column per measure."""
    shown, left_out = laws.measured(cells, rows[SERIES], MOST_ROWS)
    exponents = exponents_of(cells, rows)
    measures = [name for name in MEASURES if name in set(rows["measure"])]
    settings = _rows_of(shown)
    labels = [", ".join(filter(None, (f.label, f"after step {s}"))) for f, s in settings]
    families, ratio = [family for family, _ in settings], 0.62 if len(measures) < 3 else 0.8
    options = style.keywords(ratio=ratio, more=2, labels=labels, sharey=False)
    page, grid = laws.panels(families, len(measures), **options)
    inches = page.get_figwidth() / len(measures) - 0.6
    drawn: list[laws.Law] = []
    theory: set[str] = set()
    for panels, (family, step) in zip(grid, settings, strict=True):
        for ax, measure in zip(panels, measures, strict=True):
            here, there = (
                table[(table["measure"] == measure) & (table["step"] == step)]
                for table in (rows, explicit)
            )
            found = _laws(family, here, exponents, step)
            known = _draw_theory(ax, tables, family, rows, measure, step)
            theory |= {OPTIMIZERS[family.keys["optimizer"]].family} if known else set()
            more = [*known, *_draw_explicit(ax, there)]
            laws.draw(ax, found, family, heading=LABELS[measure], inches=inches, more=more)
            if len(explicit):  # of lower ranks
                ax.set_xlim(left=min(ax.get_xlim()[0], 0.7 * explicit["rank"].min()))
            if family.finite_ranks[-1] > RANK_FREE_ONLY:
                _powers(ax, family.finite_ranks)
            unit = "relative" if MEASURES[measure].weighting else "nats"
            style.y_label(ax, "distance to infinite rank", unit)
            style.log_axis([ax])
            drawn += found
    dashed = "Dashed: theory for the first step, without a fit."
    uniform = "Under SGD, $D - 0.2$ takes the place of $D + 1$ for a uniform $A$."
    rings = "Rings: explicit runs, which train factors of their rank."
    return style.finish(
        page,
        laws.fine_print(drawn, laws.PER_LAYER, inches=inches),
        f"{dashed} {uniform if 'linear' in theory else ''}".strip() if theory else "",
        rings if len(explicit) else "",
        left_out,
        shown=families,
    )


def _rows_of(shown: Sequence[laws.Measured]) -> list[tuple[Family, int]]:
    """The setting and step of each row: the last step of every setting, and before it the first
    step, of all settings if there is room, else of the first setting."""
    firsts = shown if 2 * len(shown) <= MOST_ROWS else shown[:1]
    rows = []
    for one in shown:
        steps = [one.steps[0], one.steps[-1]] if one in firsts else [one.steps[-1]]
        rows += [(one.family, step) for step in dict.fromkeys(steps)]
    return rows[:MOST_ROWS]


def _laws(family: Family, rows: pd.DataFrame, exponents: pd.DataFrame, step: int) -> list[laws.Law]:
    """The laws of one measure: the mean over layers of the log if it is measured per layer."""
    if rows.empty:
        return []
    measure = str(rows["measure"].iloc[0])
    of_layers = rows[rows["layer"] != MODEL_WIDE]
    if len(of_layers):
        where = laws.over_layers(measure, "distance")
        return laws.layer_laws(family, of_layers[SERIES], exponents, step, where)
    where = laws.whole_model(measure, "distance")
    return laws.laws(family, rows[SERIES], exponents, step=step, **where)


def _draw_theory(
    ax: Axes, tables: Tables, family: Family, rows: pd.DataFrame, measure: str, step: int
) -> list[tuple[Line2D, str]]:
    """The known distance after the first step, as the mean over layers of the log.

    gid: ``known <measure>``.
    """
    kind = MEASURES[measure]
    init = INITS.get(family.keys.get("init", DEFAULT_INIT))  # None for an imported adapter
    optimizer = OPTIMIZERS.get(family.keys.get("optimizer", ""))
    if step != 1 or optimizer is None or optimizer.family not in kind.formula:
        return []
    p = LIMIT_P[optimizer.family]
    if not any(math.isclose(rule.p, p) for rule in family.rules) or init is None or init.q != 0:
        return []
    recorded = layers_of(rows[(rows["layer"] != MODEL_WIDE) & (rows["step"] == 1)], init.kurtosis)
    known = recorded or layers_of(_forward(tables, step), init.kurtosis)
    ranks = np.geomspace(family.finite_ranks[0], family.finite_ranks[-1], 33)
    how = style.keywords(weighting=kind.weighting, kind=optimizer.family, init=init.drawn)
    curves = [first_step_distance(ranks, layer, **how) for layer in known]
    log = np.array([np.log(curve) for curve in curves if np.isfinite(curve).all()])
    if not len(log):
        return []
    distance = np.exp(log.mean(axis=0))
    (line,) = ax.plot(ranks, distance, gid=f"known {measure}", **style.THEORY)
    return [(line, f"theory {kind.formula[optimizer.family]}")]


def _forward(tables: Tables, step: int) -> pd.DataFrame:
    """The rows of ``probes`` on the output of each layer's adapter."""
    probes = tables.probes
    here = (probes["site"] == FORWARD_OUT.site) & (probes["step"] == step)
    here &= (probes["batch"] == TRAIN) & (probes["layer"] != MODEL_WIDE)
    return probes[here & probes["cell_id"].isin(set(tables.cells["cell_id"].astype(str)))]


def layers_of(rows: pd.DataFrame, kurtosis: float) -> list[Layer]:
    """A layer per value of the column ``layer``, as geometric means over cells, from the columns
    ``d_in``, ``d_out`` and those of alignments; none if these were not recorded."""
    names = [name for name in ("d_in", "d_out", *ALIGNMENTS) if name in rows]
    if "d_in" not in names or rows.empty:
        return []
    logs = pd.DataFrame(np.log(rows[names].astype(float))).groupby(rows["layer"].astype(str)).mean()
    found = []
    for values in pd.DataFrame(np.exp(logs)).to_dict("records"):
        given = {str(name): value for name, value in values.items() if np.isfinite(value)}
        found.append(Layer(**given, kurtosis=kurtosis))
    return found


def _draw_explicit(ax: Axes, explicit: pd.DataFrame) -> list[tuple[Line2D, str]]:
    """A ring per explicit run: the mean over layers of the log. gid: ``explicit``."""
    explicit = explicit[np.isfinite(explicit["rank"].astype(float))]
    if explicit.empty:
        return []
    per_layer = explicit[explicit["layer"] != MODEL_WIDE]
    rows = per_layer if len(per_layer) else explicit
    log = rows.assign(log=np.log(rows["value"].astype(float)))
    means = log.groupby(["rank", "cell_id"])["log"].mean()
    ring = style.keywords(markersize=5.5, markerfacecolor="none", markeredgewidth=0.6)
    ranks = means.index.get_level_values("rank")
    look = style.HOLLOW | ring | style.keywords(color=style.INK, marker="o", zorder=5)
    (line,) = ax.plot(ranks, np.exp(means), gid="explicit", **look)
    return [(line, "explicit runs")]


def _powers(ax: Axes, ranks: Sequence[float]) -> None:
    """Label ranks as powers of two: at most about seven of them."""
    powers = [rank for rank in ranks if float(np.log2(rank)).is_integer()]
    labelled = powers[:: 1 + len(powers) // 7]
    ax.xaxis.set_major_locator(FixedLocator(labelled))
    ax.xaxis.set_major_formatter(
        FixedFormatter([f"$2^{{{np.log2(rank):.0f}}}$" for rank in labelled])
    )
    ax.xaxis.set_minor_locator(FixedLocator([rank for rank in ranks if rank not in labelled]))
