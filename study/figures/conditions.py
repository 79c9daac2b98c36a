"""The forward and the backward condition of rank stability, with predicted finite-rank curves.

Kalajdzievski 2023 (theorem 3.2): the outputs of an adapter must not depend on the rank, nor the
gradients that it passes to its inputs. Both grow along ``r (r - 1 + rho)``, with different
crossovers rho: about 5 forward on real text, about D backward.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.errors import StudyError
from study.figures import laws, style
from study.figures.captions import span
from study.figures.selection import Absent, Family, Rule, Tables, holding, per_layer
from study.figures.theory_lines import setting
from study.theory import Layer, curve, slope
from study.vocabulary.quantities import (
    ALIGNMENTS,
    BACKWARD_IN,
    FORWARD_OUT,
    MODEL_WIDE,
    TRAIN,
    Quantity,
)
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

MOST_FAMILIES = 4


@dataclass(frozen=True)
class Predicted:
    """A finite-rank curve: ``log[i]`` at ``ranks[i]`` is the mean of the log over ``layers``."""

    ranks: np.ndarray
    log: np.ndarray
    layers: int


@style.paper()
def conditions(tables: Tables) -> Figure:
    """Rms of the adapter output and of the gradient that the adapter passes to its inputs, against
    the rank, with fitted lines and predicted finite-rank curves.

    The step is the last one with a prediction, or the last probed step if none has one. A curve is
    predicted up to a factor, which the data set: compare shapes. A curve needs each layer's D and,
    for the output, its r_align (SGD) or r_sign (sign-like): ``probes.stats=[all,r_align,r_sign]``.
    """
    series = {
        quantity: per_layer(tables.cells, tables.probes, quantity.site, quantity.stat)
        for quantity in (FORWARD_OUT, BACKWARD_IN)
    }
    if any(rows.empty for rows in series.values()):
        raise Absent("no rms of both adapter_out and adapter_in_grad in the tables")
    both = pd.concat(list(series.values()), ignore_index=True)
    cells = holding(tables.cells, both, "adapter_out rms")
    shown, left_out = laws.measured(cells, both, MOST_FAMILIES)

    entries = min(max(len(one.family.rules) for one in shown), laws.MOST_RULES) + 2
    page = style.figure(len(shown), 2, ratio=0.58, above=0.3 + 0.14 * entries * len(shown))
    drawn: list[laws.Law] = []
    known: list[Predicted] = []
    parts = style.rows(page, [one.family.label for one in shown])
    for part, one in zip(parts, shown, strict=True):
        step = max((s for s in one.steps if s <= LAST_PREDICTED_STEP), default=one.steps[-1])
        panels = part.subplots(1, 2, squeeze=False)[0]
        for ax, (quantity, rows) in zip(panels, series.items(), strict=True):
            at_step = rows[rows["step"] == step]
            where = laws.over_layers(quantity.site, quantity.stat)
            found = laws.layer_laws(one.family, at_step, tables.exponents, step, where)
            curves = _curves(found, one.family, quantity, tables.probes, step)
            found = [_without_line(law) if law.rule in curves else law for law in found]
            _draw(ax, found, curves, one.family, quantity, step)
            drawn += found
            known += curves.values()
    return style.finish(
        page,
        laws.fine_print(drawn, laws.PER_LAYER),
        _on_curves(known),
        left_out,
        shown=[one.family for one in shown],
    )


def _curves(
    found: list[laws.Law], family: Family, quantity: Quantity, probes: pd.DataFrame, step: int
) -> dict[Rule, Predicted]:
    """By rule: the predicted curves that are known."""
    curves = {}
    for law in found:
        predicted = predicted_curve(family, law.rule, quantity, probes, step, law.rank)
        if predicted is not None:
            curves[law.rule] = predicted
    return curves


def _draw(
    ax: Axes,
    found: list[laws.Law],
    curves: dict[Rule, Predicted],
    family: Family,
    quantity: Quantity,
    step: int,
) -> None:
    """One condition: laws and predicted curves."""
    lines = [_draw_curve(ax, law, curves[law.rule]) for law in found if law.rule in curves]
    slopes = {
        law.rule: _slope(law, curves[law.rule])
        for law in found
        if law.rule in curves and len(set(law.rank)) > 1
    }
    laws.draw(
        ax,
        found,
        family,
        heading=f"{quantity.name}:  {quantity.symbol}",
        inches=ax.get_figure(root=True).get_figwidth() / 2 - 0.6,  # type: ignore[union-attr]
        curved=slopes,
        more=[(line, "theory") for line in lines[:1]],
    )
    style.y_label(ax, f"{quantity.stat} at step {step}", "mean over layers of the log")
    style.log_axis([ax])


def _on_curves(known: list[Predicted]) -> str:
    if not known:
        return "No predicted curve: D or the alignment of the layers was not recorded."
    layers = span(one.layers for one in known)
    return (
        f"Dashed: predicted finite-rank curve, mean over {layers} layers of the log, through the "
        "mean of the data."
    )


def predicted_curve(
    family: Family,
    rule: Rule,
    quantity: Quantity,
    probes: pd.DataFrame,
    step: int,
    ranks: np.ndarray,
) -> Predicted | None:
    """The predicted finite-rank curve of one rule over the range of ``ranks``.

    None if theory does not predict the family, or the layers' alignments were not recorded.
    """
    known = setting(family)
    if known is None or not len(ranks):
        return None
    ranks = np.union1d(ranks, np.geomspace(ranks.min(), ranks.max(), 65))
    cells = family.cells.loc[family.cells["rule"] == rule, "cell_id"]
    logs = []
    for layer in layers(cells, quantity, probes, step, known.init.kurtosis):
        try:
            values = curve(
                quantity.site,
                quantity.stat,
                ranks,
                step=step,
                optimizer=known.optimizer,
                p=rule.p,
                q=known.q,
                init=known.init.drawn,
                layer=layer,
                modifiers=known.modifiers,
            )
        except StudyError:  # not predicted; the text below the panels says that a curve is missing
            return None
        logs.append(np.log(values))
    log = np.array([one for one in logs if np.isfinite(one).all()])
    return Predicted(ranks, log.mean(axis=0), len(log)) if len(log) else None


def layers(
    cells: Iterable[str], quantity: Quantity, probes: pd.DataFrame, step: int, kurtosis: float
) -> list[Layer]:
    """Sizes and alignments of each layer, as geometric means over ``cells``.

    Ranks and seeds are averaged: in a lazy run alignments hardly depend on the rank.
    """
    rows = probes[
        (probes["site"] == quantity.site)
        & (probes["step"] == step)
        & (probes["batch"] == TRAIN)
        & (probes["layer"] != MODEL_WIDE)
        & probes["cell_id"].isin(set(cells))
    ]
    return layers_of(rows, kurtosis)


def layers_of(rows: pd.DataFrame, kurtosis: float) -> list[Layer]:
    """A layer per value of the column ``layer``, from the columns ``d_in``, ``d_out`` and those of
    alignments; none if these were not recorded."""
    names = [name for name in ("d_in", "d_out", *ALIGNMENTS) if name in rows]
    if "d_in" not in names or rows.empty:
        return []
    logs = pd.DataFrame(np.log(rows[names].astype(float))).groupby(rows["layer"].astype(str)).mean()
    found = []
    for values in pd.DataFrame(np.exp(logs)).to_dict("records"):
        given = {str(name): value for name, value in values.items() if np.isfinite(value)}
        found.append(Layer(**given, kurtosis=kurtosis))
    return found


def _draw_curve(ax: Axes, law: laws.Law, predicted: Predicted) -> Line2D:
    """Draw the curve through the mean of the points. gid: ``curve <scaling> p=<p>``."""
    at_points = np.interp(np.log(law.rank), np.log(predicted.ranks), predicted.log)
    level = np.mean(np.log(law.value) - at_points)
    dashes: dict[str, Any] = {"color": style.INK, "linestyle": style.DASHED, "linewidth": 0.9}
    (line,) = ax.plot(
        predicted.ranks,
        np.exp(predicted.log + level),
        zorder=3.5,
        gid=f"curve {style.gid(law.rule)}",
        **dashes,
    )
    return line


def _slope(law: laws.Law, predicted: Predicted) -> float:
    """The slope of the curve over the ranks of the points."""
    at_points = np.interp(np.log(law.rank), np.log(predicted.ranks), predicted.log)
    return slope(np.exp(at_points), law.rank)


def _without_line(law: laws.Law) -> laws.Law:
    """The law without its predicted straight line, because its curve is drawn."""
    if law.fit is None:
        return law
    return dataclasses.replace(law, fit=pd.Series({**law.fit, "predicted": np.nan}))
