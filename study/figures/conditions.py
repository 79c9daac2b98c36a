"""The two halves of rank stability side by side, each with the curve that theory draws through finite ranks.

Kalajdzievski 2023 (theorem 3.2): outputs must stay level in the rank, and the gradients passed to inputs too. Both grow
along ``r (r - 1 + rho)``, but their crossovers rho differ: about 5 forward on real text, about D backward.
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
from study.figures.activation_moments import layer_laws
from study.figures.quantities import modifiers
from study.figures.selection import Absent, Family, Rule, Tables, holding, per_layer
from study.theory import Layer, curve, slope
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import ALIGNMENTS, BACKWARD_IN, FORWARD_OUT, MODEL_WIDE, Quantity
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

MOST_FAMILIES = 4
HEADINGS = {
    FORWARD_OUT.name: r"forward:  $y = \gamma BAx$",
    BACKWARD_IN.name: r"backward:  $\gamma A^{\mathsf{T}} B^{\mathsf{T}} g$",
}


@dataclass(frozen=True)
class Theory:
    """The mean over layers of the log of the finite-rank curves, at ``ranks``; ``layers`` of them are known."""

    ranks: np.ndarray
    log: np.ndarray
    layers: int


@style.paper()
def conditions(tables: Tables) -> Figure:
    """``adapter_out`` and ``adapter_in_grad`` rms against the rank at one step: fitted lines and finite-rank theory.

    The step is the last one that theory reaches (:data:`study.theory.LAST_PREDICTED_STEP`), or the last probed where there is
    none. The theory's curve is up to a factor, which is the data's own: its shape is what is compared. It needs each
    layer's D, and its r_align (SGD) or r_sign (sign-like) going forward: ``probes.stats=[all,r_align,r_sign]``.
    """
    series = {
        q: per_layer(tables.cells, tables.probes, q.site, q.stat)
        for q in (FORWARD_OUT, BACKWARD_IN)
    }
    series = {quantity: rows for quantity, rows in series.items() if len(rows)}
    if len(series) < 2:
        raise Absent("no rms of both adapter_out and adapter_in_grad in the tables")
    both = pd.concat(list(series.values()), ignore_index=True)
    shown, left_out = laws.measured(
        holding(tables.cells, both, "adapter_out rms"), both, MOST_FAMILIES
    )

    entries = min(max(len(one.family.rules) for one in shown), laws.MOST_RULES) + 2
    page = style.figure(len(shown), 2, ratio=0.58, above=0.3 + 0.14 * entries * len(shown))
    inches = page.get_figwidth() / 2 - 0.6
    drawn: list[laws.Law] = []
    known: list[Theory] = []
    for part, one in zip(style.rows(page, [o.family.label for o in shown]), shown, strict=True):
        step = max((s for s in one.steps if s <= LAST_PREDICTED_STEP), default=one.steps[-1])
        panels = part.subplots(1, 2, squeeze=False)[0]
        for ax, (quantity, rows) in zip(panels, series.items(), strict=True):
            where = {
                "site": quantity.site,
                "stat": quantity.stat,
                "batch": "train",
                "layer": "mean_log",
                "kind": "all",
            }
            found = layer_laws(
                one.family, rows[rows["step"] == step], tables.exponents, step, where
            )
            told = {
                law.rule: theory(one.family, law.rule, quantity, tables.probes, step, law.rank)
                for law in found
            }
            curves = [(law, said) for law in found if (said := told[law.rule]) is not None]
            lines = [_draw_theory(ax, law, said) for law, said in curves]
            slopes = {law.rule: _slope(law, said) for law, said in curves if len(set(law.rank)) > 1}
            found = [law if told[law.rule] is None else _straight_only(law) for law in found]
            laws.draw(
                ax,
                found,
                one.family,
                heading=HEADINGS[quantity.name],
                inches=inches,
                curved=slopes,
                more=[(line, "theory") for line in lines[:1]],
            )
            drawn += found
            known += [said for _, said in curves]
            style.y_label(ax, f"rms at step {step}", "mean over layers of the log")
            style.log_axis([ax])
    return style.finish(
        page,
        laws.fine_print(drawn, "one per seed; bars: 5–95% of layers"),
        f"Dashed: theory at finite ranks, mean over {_range([t.layers for t in known])} layers of the log, through the "
        "data's mean." if known else "No finite-rank curve: D or the layers' alignment was not recorded.",
        left_out,
    )  # fmt: skip


def theory(
    family: Family,
    rule: Rule,
    quantity: Quantity,
    probes: pd.DataFrame,
    step: int,
    ranks: np.ndarray,
) -> Theory | None:
    """The finite-rank curve of one rule, or ``None`` where a curve needs what was not predicted or not recorded."""
    optimizer, init = family.keys.get("optimizer"), INITS.get(family.keys.get("init", "kaiming"))
    if optimizer not in OPTIMIZERS or init is None or init.q is None or not len(ranks):
        return None
    known: dict[str, Any] = {
        "step": step,
        "optimizer": optimizer,
        "p": rule.p,
        "q": init.q,
        "init": init.drawn,
    }
    ranks = np.union1d(ranks, np.geomspace(ranks.min(), ranks.max(), 65))
    logs = []
    cells = family.cells.loc[family.cells["rule"] == rule, "cell_id"]
    for layer in layers(cells, quantity, probes, step, init.kurtosis):
        try:
            values = curve(
                quantity.site,
                quantity.stat,
                ranks,
                layer=layer,
                modifiers=modifiers(family),
                **known,
            )
        except StudyError:  # nothing is predicted, and the caption says so
            return None
        logs.append(np.log(values))
    log = np.array([one for one in logs if np.isfinite(one).all()])
    return Theory(ranks, log.mean(axis=0), len(log)) if len(log) else None


def layers(
    cells: Iterable[str], quantity: Quantity, probes: pd.DataFrame, step: int, kurtosis: float
) -> list[Layer]:
    """What the probes know of each layer: its sizes, and its alignments as geometric means over ``cells``.

    A lazy run's alignments hardly depend on the rank, and a fresh batch moves them as a fresh seed does.
    """
    rows = probes[
        (probes["site"] == quantity.site) & (probes["step"] == step) & (probes["batch"] == "train")
        & (probes["layer"] != MODEL_WIDE) & probes["cell_id"].isin(set(cells))
    ]  # fmt: skip
    names = [name for name in ("d_in", "d_out", *ALIGNMENTS) if name in rows]
    if "d_in" not in names or rows.empty:
        return []
    logs = pd.DataFrame(np.log(rows[names].astype(float))).groupby(rows["layer"].astype(str)).mean()
    found = []
    for values in pd.DataFrame(np.exp(logs)).to_dict("records"):
        given = {str(name): value for name, value in values.items() if np.isfinite(value)}
        found.append(Layer(**given, kurtosis=kurtosis))
    return found


def _draw_theory(ax: Axes, law: laws.Law, said: Theory) -> Line2D:
    """Lay the curve through the mean of the points. gid: ``curve <scaling> p=<p>``."""
    at_points = np.interp(np.log(law.rank), np.log(said.ranks), said.log)
    level = np.mean(np.log(law.value) - at_points)
    dashes: dict[str, Any] = {
        "color": style.INK,
        "linestyle": (0, (4, 2)),
        "linewidth": 0.9,
        "zorder": 3.5,
    }
    (line,) = ax.plot(
        said.ranks, np.exp(said.log + level), gid=f"curve {style.gid(law.rule)}", **dashes
    )
    return line


def _slope(law: laws.Law, said: Theory) -> float:
    """The curve's own slope over the ranks of the points."""
    return slope(np.exp(np.interp(np.log(law.rank), np.log(said.ranks), said.log)), law.rank)


def _straight_only(law: laws.Law) -> laws.Law:
    """The law without its predicted straight line: the curve itself is drawn."""
    return (
        law
        if law.fit is None
        else dataclasses.replace(law, fit=pd.Series({**law.fit, "predicted": np.nan}))
    )


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"
