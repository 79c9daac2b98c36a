"""How far a run of rank r is from the run of infinite rank, up to ranks that no machine can hold.

Under SGD at p = 1/2 the first step's distance is known: ``sqrt((D + 1)/r)`` in Frobenius norm, and with each direction
weighted by the inputs' second moment ``sqrt((1 + r_align)/r)``, far less on real text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator

from study.analysis import fit_exponents
from study.figures import laws, style
from study.figures.activation_moments import layer_laws
from study.figures.conditions import layers
from study.figures.selection import Absent, Family, Tables
from study.theory import Layer
from study.theory import distance_to_infinite_rank as first_step_distance
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import of_family
from study.vocabulary.quantities import ALIGNMENTS, FORWARD_OUT, MODEL_WIDE

MOST_ROWS = 4
MEASURES = {
    "input_weighted": ("input-weighted", "inputs", r"$\sqrt{(1 + r_\mathrm{align})/r}$"),
    "frobenius": ("Frobenius", "frobenius", r"$\sqrt{(D + 1)/r}$"),
    "loss": ("loss", "", ""),
}
"""By name in the tables: what a heading calls it, the theory's word for it, and the theory's formula."""
HELD = 2**14
"""Above this rank only rank-free runs go, and powers of two label the axis."""
SERIES = ["cell_id", "step", "layer", "value"]
FACTS = (
    "study",
    "model",
    "data",
    "optimizer",
    "lr",
    "alpha",
    "init",
    "scaling",
    "exponent",
    "rank",
    "seed",
)
"""What a table of distances may say of its runs where they are no cells of the study."""


@style.paper()
def distance_to_infinite_rank(tables: Tables) -> Figure:
    """Distance of each run's delta_w from the infinite-rank run's against the rank, after the first and the last step.

    Reads ``tables.distances`` (cell_id, rank, scaling, seed, step, layer, kind, measure, distance).
    """
    rows = _read(tables)
    rows = (
        rows[rows["cell_id"].isin(set(tables.cells["cell_id"].astype(str)))] if len(rows) else rows
    )
    if rows.empty:
        raise Absent(
            "no distances to infinite rank in the tables: train adapter.rank=inf beside the finite ranks"
        )
    cells = tables.cells[tables.cells["cell_id"].astype(str).isin(set(rows["cell_id"]))]
    return _draw(tables, cells, rows)


@style.paper()
def rank_free_curves(tables: Tables) -> Figure:
    """The same distances for rank-free runs, whose cost does not depend on the rank, with the explicit runs on them.

    Reads ``tables.distances``: the study's cells are explicit, with factors of their rank; the others are rank-free.
    """
    rows = _read(tables)
    is_cell = (
        rows["cell_id"].isin(set(tables.cells["cell_id"].astype(str)))
        if len(rows)
        else pd.Series(dtype=bool)
    )
    rows, explicit = rows[~is_cell], rows[is_cell]
    if rows.empty:
        raise Absent(
            "no rank-free runs in the tables: study distances RESULTS/NAME --rank-free 65536,1048576"
        )
    facts = [name for name in FACTS if name in rows]
    cells = (
        rows[["cell_id", *facts]]
        .drop_duplicates("cell_id")
        .assign(status="complete")
        .reset_index(drop=True)
    )
    return _draw(tables, cells, rows, explicit)


def _read(tables: Tables) -> pd.DataFrame:
    """The distances that have a logarithm, of a study that may have none."""
    table = getattr(tables, "distances", pd.DataFrame())
    if len(table) == 0:
        return pd.DataFrame()
    rows = table[
        np.isfinite(table["distance"].astype(float)) & (table["distance"] > 0) & (table["step"] > 0)
    ]
    rows = rows.assign(
        measure=rows["measure"].astype(str), layer=rows["layer"].astype(str), value=rows["distance"]
    )
    return rows.assign(cell_id=rows["cell_id"].astype(str))


def _draw(
    tables: Tables, cells: pd.DataFrame, rows: pd.DataFrame, explicit: pd.DataFrame | None = None
) -> Figure:
    """A row of panels per setting and step, a column per measure."""
    shown, left_out = laws.measured(cells, rows[SERIES], MOST_ROWS)
    exponents = _exponents(cells, rows)
    measures = [name for name in MEASURES if name in set(rows["measure"])]
    parts = [(one, step) for one in shown for step in dict.fromkeys([one.steps[0], one.steps[-1]])][
        :MOST_ROWS
    ]
    entries = 2 * min(max(len(one.family.rules) for one, _ in parts), laws.MOST_RULES) + 2
    page = style.figure(
        len(parts),
        len(measures),
        column=style.FULL if len(measures) > 1 else style.HALF,
        ratio=0.62 if len(measures) < 3 else 0.8,
        above=0.3 + 0.14 * entries * len(parts),
    )
    inches = page.get_figwidth() / len(measures) - 0.6
    labels = [
        ", ".join(filter(None, (one.family.label, f"after step {step}"))) for one, step in parts
    ]
    drawn: list[laws.Law] = []
    theory = laid_on = False
    for part, (one, step) in zip(style.rows(page, labels), parts, strict=True):
        panels = part.subplots(1, len(measures), squeeze=False)[0]
        for ax, measure in zip(panels, measures, strict=True):
            found = _laws(
                one.family,
                rows[(rows["measure"] == measure) & (rows["step"] == step)],
                exponents,
                step,
            )
            more = _theory(ax, tables, one.family, rows, measure, step)
            theory = theory or bool(more)
            if explicit is not None and len(explicit):
                more += _lay_on(
                    ax, explicit[(explicit["measure"] == measure) & (explicit["step"] == step)]
                )
                laid_on = True
            laws.draw(ax, found, one.family, heading=MEASURES[measure][0], inches=inches, more=more)
            if explicit is not None and len(explicit):
                ax.set_xlim(left=min(ax.get_xlim()[0], 0.7 * explicit["rank"].min()))
            if one.family.finite_ranks[-1] > HELD:
                _powers(ax, one.family.finite_ranks)
            style.y_label(
                ax, "distance to infinite rank", "nats" if measure == "loss" else "relative"
            )
            style.log_axis([ax])
            drawn += found
    return style.finish(
        page,
        laws.fine_print(
            drawn, "one per seed, the mean over layers of the log; bars: 5–95% of layers"
        ),
        "Dashed: theory for the first step, nothing fitted ($D - 0.2$ for a uniform $A$)."
        if theory
        else "",
        "Rings: explicit runs, whose factors have that rank." if laid_on else "",
        left_out,
    )


def _exponents(cells: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The analysis' own fits, of distances in the place of a probed statistic."""
    probes = rows[["cell_id", "step", "layer", "kind", "distance"]].assign(
        site=rows["measure"], batch="train", block=np.where(rows["layer"] == MODEL_WIDE, -1, 0)
    )
    return fit_exponents(cells, probes, stats=["distance"])


def _laws(family: Family, rows: pd.DataFrame, exponents: pd.DataFrame, step: int) -> list[laws.Law]:
    """The laws of one measure: the mean over layers of the log, or the model's own number where there are no layers."""
    where: dict[str, str] = {"stat": "distance", "batch": "train"}
    if rows.empty:
        return []
    where["site"] = str(rows["measure"].iloc[0])
    of_layers = rows[rows["layer"] != MODEL_WIDE]
    if len(of_layers):
        where |= {"layer": "mean_log", "kind": "all"}
        return layer_laws(family, of_layers[SERIES], exponents, step, where)
    where |= {"layer": MODEL_WIDE, "kind": MODEL_WIDE}
    return laws.laws(family, rows[SERIES], exponents, step=step, **where)


def _theory(
    ax: Axes, tables: Tables, family: Family, rows: pd.DataFrame, measure: str, step: int
) -> list[tuple[Line2D, str]]:
    """The known distance after one SGD step at p = 1/2, the mean over layers of the log. gid: ``known <measure>``."""
    _, weighting, formula = MEASURES[measure]
    optimizer, init = (
        family.keys.get("optimizer", "sgd"),
        INITS.get(family.keys.get("init", "kaiming")),
    )
    half = any(abs(rule.p - 0.5) < 1e-9 for rule in family.rules)
    if (
        step != 1
        or not weighting
        or not half
        or optimizer not in of_family("linear")
        or init is None
        or init.q != 0
    ):
        return []
    known = _known_layers(rows, init.kurtosis) or layers(
        tables.cells["cell_id"].astype(str), FORWARD_OUT, tables.probes, step, init.kurtosis
    )
    ranks = np.geomspace(family.finite_ranks[0], family.finite_ranks[-1], 33)
    curves = [
        first_step_distance(ranks, layer, weighting=weighting, init=init.drawn) for layer in known
    ]
    log = np.array([np.log(curve) for curve in curves if np.isfinite(curve).all()])
    if not len(log):
        return []
    dashes: dict[str, Any] = {
        "color": style.INK,
        "linestyle": (0, (4, 2)),
        "linewidth": 0.9,
        "zorder": 3.5,
    }
    (line,) = ax.plot(ranks, np.exp(log.mean(axis=0)), gid=f"known {measure}", **dashes)
    return [(line, f"theory {formula}")]


def _known_layers(rows: pd.DataFrame, kurtosis: float) -> list[Layer]:
    """The layers' sizes and alignments, where the table of distances has them itself."""
    names = [name for name in ("d_in", "d_out", *ALIGNMENTS) if name in rows]
    if "d_in" not in names:
        return []
    of_layers = rows[(rows["layer"] != MODEL_WIDE) & (rows["step"] == 1)]
    logs = pd.DataFrame(np.log(of_layers[names].astype(float))).groupby(of_layers["layer"]).mean()
    found = []
    for values in pd.DataFrame(np.exp(logs)).to_dict("records"):
        found.append(
            Layer(**{str(n): v for n, v in values.items() if np.isfinite(v)}, kurtosis=kurtosis)
        )
    return found


def _lay_on(ax: Axes, explicit: pd.DataFrame) -> list[tuple[Line2D, str]]:
    """Rings where explicit runs lie: the mean over layers of the log. gid: ``explicit``."""
    explicit = explicit[np.isfinite(explicit["rank"].astype(float))]
    if explicit.empty:
        return []
    of_layers = (
        explicit[explicit["layer"] != MODEL_WIDE]
        if (explicit["layer"] != MODEL_WIDE).any()
        else explicit
    )
    logs = (
        of_layers.assign(log=np.log(of_layers["value"].astype(float)))
        .groupby(["rank", "cell_id"])["log"]
        .mean()
    )
    ring: dict[str, Any] = {"color": style.INK, "marker": "o", "markersize": 5.5, "markerfacecolor": "none",
                            "markeredgewidth": 0.6, "linestyle": "none", "zorder": 5}  # fmt: skip
    (line,) = ax.plot(logs.index.get_level_values("rank"), np.exp(logs), gid="explicit", **ring)
    return [(line, "explicit runs")]


def _powers(ax: Axes, ranks: Sequence[float]) -> None:
    """Ranks up to a million as powers of two, every other one where there are many."""
    powers = [rank for rank in ranks if float(np.log2(rank)).is_integer()]
    labelled = powers[:: 1 + len(powers) // 7]
    ax.xaxis.set_major_locator(FixedLocator(labelled))
    ax.xaxis.set_major_formatter(
        FixedFormatter([f"$2^{{{np.log2(rank):.0f}}}$" for rank in labelled])
    )
    ax.xaxis.set_minor_locator(FixedLocator([rank for rank in ranks if rank not in labelled]))
