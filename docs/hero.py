"""The README's first figure: the loss against the learning rate at two ranks, under both rules."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.blocks import study_tables
from docs.evidence import measured_in
from study.analysis.fits import mean_interval
from study.analysis.wording import interval_text
from study.figures import style
from study.figures.final_loss import LABEL, Sweep, sweeps
from study.figures.selection import Rule
from study.report.text import minus
from study.vocabulary.quantities import MODEL_WIDE
from study.vocabulary.scaling import formula, rule_label

STUDY = "paper_learning_rate"
SAME = 1.25
"""A factor of the rate that a tuner does not see."""


def best_rates(scaling: str, study: str = STUDY) -> "pd.Series[float]":
    """By rank, the geometric mean over seeds of the best rate under a rule."""
    rates = study_tables(study).rates
    own = rates[rates["scaling"] == scaling]
    return np.exp(np.log(own["best_lr"]).groupby(own["rank"]).mean())


def rate_change(scaling: str, study: str = STUDY) -> str:
    """``3.6 times lower``: how the best rate changes from the lowest to the highest rank."""
    best = best_rates(scaling, study)
    factor = best.iloc[-1] / best.iloc[0]
    if 1 / SAME < factor < SAME:
        return "the same"
    return f"{factor:.1f} times higher" if factor > 1 else f"{1 / factor:.1f} times lower"


def best_gap(scaling: str, study: str = STUDY, steps: str = "20") -> str:
    """The loss of the highest rank less that of the lowest, each at the rate of its lowest mean."""
    where = f"how == 'best' and scaling == '{scaling}' and steps == {steps}"
    own = study_tables(study).losses.query(where)
    of_rank = own.pivot(index="seed", columns="rank", values="loss")
    gap = of_rank.iloc[:, -1] - of_rank.iloc[:, 0]
    return minus(interval_text(*mean_interval(gap), places=3))


def below_best(lr: str, study: str = STUDY) -> str:
    """``65``: how many times LoRA's best rate at the highest rank is as high as a rate."""
    return f"{best_rates('lora', study).iloc[-1] / float(lr):.0f}"


def norm_ratio(rank: str, step: str) -> str:
    """How many times as large rsLoRA's gradient norm is as LoRA's under AdamW, mean over seeds."""
    norms = measured_in("theorem_over_training", "adapter_grad", int(step))
    here = norms.query(f"layer == '{MODEL_WIDE}' and rank == {rank} and lr == 1e-4")
    mean = here.groupby(here["scaling"].astype(str))["norm"].mean()
    return f"{mean['rslora'] / mean['lora']:.1f}"


@style.paper()
def hero() -> Figure:
    """A panel per rule, a line per rank; a triangle on the axis marks the best rate of a rank."""
    [sweep] = sweeps(study_tables(STUDY), "lr")
    page, [axes] = style.panels([sweep], 2, ratio=0.46)
    for ax, rule in zip(axes, sweep.rules, strict=True):
        draw(ax, sweep, rule)
        name, change = rule_label(rule.scaling, rule.p), rate_change(rule.scaling)
        ax.set_title(
            f"{name}, {formula(rule.p)}: at rank {sweep.ranks[-1]:g} the best rate is {change}"
        )
    style.y_axis(axes, *LABEL)
    ranks = sweep.finite_ranks
    return style.finish(
        page,
        f"Triangles: the best learning rate of rank {ranks[0]:g} (light) and of rank "
        f"{ranks[-1]:g} (dark). Bands: range over seeds.",
    )


def draw(ax: Axes, sweep: Sweep, rule: Rule) -> None:
    """The losses of a rule. The lower rank is wide, so that it shows below an equal one."""
    best, (bottom, top) = best_rates(rule.scaling), sweep.y_range
    for rank, width in zip(sweep.finite_ranks, (2.6, 1.0), strict=True):
        own = sweep.of(rule)
        loss = own[own["rank"] == rank].groupby("lr")["loss"].agg(["mean", "min", "max"])
        colour = style.shade(rule, rank, sweep.finite_ranks)
        ax.plot(loss.index, loss["mean"], color=colour, linewidth=width)
        style.band(ax, loss.index, loss["min"], loss["max"], colour, f"band {rank:g}")
        inside = loss["mean"][loss["mean"] < top]
        style.label_end(ax, inside.index[-1], inside.iloc[-1], f"rank {rank:g}", colour)
        marker = {"marker": "^", "markersize": 7, "clip_on": False, "zorder": 5}
        ax.plot(best[rank], bottom, color=colour, **marker)
    ax.set_xscale("log")
    ax.set_ylim(bottom, top)
    style.log_ticks(ax.xaxis, tuple(sorted(sweep.rates)[:: len(sweep.rates) - 1]))
    ax.set_xlabel("learning rate")
