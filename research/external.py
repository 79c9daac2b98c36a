"""Sweeps over rank and learning rate that others ran, and the laws of their best rates.

``results/external/tinker_sft_sweep.csv`` holds the numbers of ``sft_sweep.md`` in tinker-cookbook
(thinking-machines-lab, commit 9dfcc3a2): 35 models, ranks 1 to 128, LoRA under Adam on tulu3, 780
steps of 128 sequences. Columns: model, learning rate, rank, test loss, training loss.
"""

import math
import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from research.blocks import ROOT
from research.rate_fits import Curve, Fit, bounds, fit_rates, left_out, moved, of_each
from study.analysis.losses import INSIDE
from study.analysis.rates import placed
from study.analysis.text import minus, table
from study.analysis.wording import interval_text
from study.figures import style

TABLE = ROOT / "results/external/tinker_sft_sweep.csv"
EXPERTS = r"A\d+B|DeepSeek|Kimi|gpt-oss"
"""The names of mixtures of experts."""
BILLIONS = {"DeepSeek": 671.0, "Kimi": 1000.0}
"""Of weights, where the name does not tell: DeepSeek-V3.1, and Kimi K2 and its successors."""
KINDS = {"dense models": "#d9730d", "mixtures of experts": "#2b6fc2"}
MARKERS = {"": "o", "lowest": "v", "highest": "^"}
MOST = 1000.0
"""The largest r_sign that is told apart: above it the curve is the power 1/4."""


@cache
def rates() -> pd.DataFrame:
    """By model (``group``) and rank the best rate, as :func:`~study.analysis.rates.placed` has it.
    ``billions``: of weights."""
    runs = pd.read_csv(TABLE).groupby(["model", "rank", "lr"])["nll"].mean()
    rows = [
        {"group": model.rpartition("/")[2], "rank": rank, **placed(losses.droplevel([0, 1]))}
        for (model, rank), losses in runs.groupby(["model", "rank"])
        if len(losses) > 1
    ]
    found = pd.DataFrame(rows)
    names = found["group"].str
    told = names.extract(r"(?i)-(\d+(?:\.\d+)?)b", expand=False).astype(float)
    known = names.extract(f"({'|'.join(BILLIONS)})", expand=False).map(BILLIONS)
    experts = names.contains(EXPERTS).astype(float)
    return found.assign(gamma=1 / found["rank"], experts=experts, billions=told.fillna(known))


SETTING = ["source", "model", "billions", "data", "rank", "alpha", "steps", "batch", "schedule"]


@cache
def others() -> pd.DataFrame:
    """The best rate of each setting in ``sweeps.csv``, a minimum of a parabola; and those of
    ``best_rates.csv``, each the best of a grid in steps of ``step``. ``grid``: the standard
    deviation within a step."""
    runs = pd.read_csv(TABLE.with_name("sweeps.csv"))
    rows = [
        dict(zip(SETTING, key, strict=True)) | placed(own.set_index("lr")["loss"].sort_index())
        for key, own in runs.groupby(SETTING)
    ]
    tuned = pd.read_csv(TABLE.with_name("best_rates.csv"))
    tuned = tuned.assign(log_lr=np.log(tuned["lr"]), grid=np.log(tuned["step"]) / 12**0.5)
    found = pd.concat([pd.DataFrame(rows), tuned.assign(edge=INSIDE)], ignore_index=True)
    return found.assign(gamma=found["alpha"] / found["rank"])


@cache
def usable(kind: str = "all") -> pd.DataFrame:
    """The models of a kind with at least two ranks, and one of them inside its grid."""
    of_model, experts = rates().groupby("group"), rates()["experts"] == (kind == "experts")
    several = of_model["rank"].transform("nunique") > 1
    inside = of_model["edge"].transform(lambda edge: (edge == INSIDE).any())
    return rates()[several & inside & (experts if kind != "all" else True)]


def power(rows: pd.DataFrame, t: list[float]) -> np.ndarray:
    """``log r^b``."""
    return np.asarray(t[0] * np.log(rows["rank"].to_numpy(float)))


def varied(curve: Curve) -> Curve:
    """``curve`` with a first constant that changes with the kind of a model, by the second one, and
    with its size, by the third."""

    def changed(rows: pd.DataFrame, t: np.ndarray) -> np.ndarray:
        of_size = t[2] * np.log10(rows["billions"].to_numpy() / 10) if len(t) > 2 else 0.0
        return curve(rows, [t[0] + t[1] * rows["experts"].to_numpy() + of_size])

    return changed


NONE, POWER, OUTPUTS = "no dependence", "a power of the rank", "equal outputs, s = 1/2"
LAWS: dict[str, tuple[Curve, list[float]]] = {
    NONE: (lambda rows, t: np.zeros(len(rows)), []),
    POWER: (power, [0.2]),
    "equal outputs, s = 1": (lambda rows, t: moved(rows, [t[0], 1.0]), [2.0]),
    OUTPUTS: (moved, [3.5]),
    "equal outputs, s free": (moved, [3.5, 0.5]),
    "a power by kind": (varied(power), [0.2, 0.0]),
    "s = 1/2, r_sign by kind": (varied(moved), [3.5, 0.0]),
    "a power by kind and size": (varied(power), [0.2, 0.0, 0.0]),
    "s = 1/2, r_sign by kind and size": (varied(moved), [3.5, 0.0, 0.0]),
}
"""The curve of log lr by name, and the first guess of its constants. The first constant of a law by
kind and size is that of a dense model of 10 billion weights."""
LINES = {NONE: ":", POWER: "--", OUTPUTS: "-"}


@cache
def fitted(law: str, kind: str = "all") -> Fit:
    return fit_rates(usable(kind), *LAWS[law])


def _constant(law: str, kind: str = "all") -> str:
    """The exponent or r_sign of a law, with its profile interval; without it for laws by kind."""
    found = fitted(law, kind)
    if law == NONE:
        return ""
    ends = (math.nan, math.nan) if "kind" in law else bounds(usable(kind), LAWS[law][0], found)
    values = np.array([found.found[0], *ends])
    if "power" in law:
        return interval_text(*values, places=3)
    return interval_text(*np.exp(values), places=0).replace("inf", "∞")


def one_constant_laws() -> str:
    """A row per law: how much worse it fits than :data:`OUTPUTS`, in -2 log likelihood."""
    heads = ["law of the best rate", "exponent or r_sign", "others", "scatter of log rate"]
    heads += ["worse: all models", "dense", "experts", "each model left out"]
    body = []
    for law in LAWS:
        kinds = ["all"] if "kind" in law else ["all", "dense", "experts"]
        worse = [f"{fitted(law, one).cost - fitted(OUTPUTS, one).cost:+.1f}" for one in kinds]
        worse += [""] * (3 - len(kinds)) + [f"{without(law) - without(OUTPUTS):+.1f}"]
        others = ", ".join(f"{x:+.2f}" for x in fitted(law).found[1:])
        body.append([law, _constant(law), others, f"{fitted(law).scatter:.3f}", *worse])
    return minus(re.sub(r"[+-]0\.0(?!\d)", "0", table(heads, body)))


@cache
def without(law: str) -> float:
    """-2 log likelihood of each model's best rates under the law of the others."""
    return float(left_out(usable(), *LAWS[law])["cost"].sum())


def published(of: str, kind: str = "all") -> str:
    """A number of the best rates of a kind of models: the ``exponent`` with the rank, ``0.194
    [0.172, 0.216]``, or ``r_sign``, ``48 [33, 74]``. ``without``: its range if one model is left
    out."""
    if kind != "without":
        return _constant(POWER if of == "exponent" else OUTPUTS, kind)
    found = np.exp(left_out(usable(), *LAWS[OUTPUTS])["constant"])
    return f"{found.min():.0f} (without {found.idxmin()}) to {found.max():.0f}"


SWEEPS = {
    "lr-matters": "batch == 64 and steps == 1562",
    "persona-system": "steps == 3788",
    "muon-finetune": "steps == 1150",
    "nhckdvrl": "data == 'GSM8K float32'",
    "brokttv": "alpha == 32",
    "cera": "alpha == 32",
}
"""Sweeps of others: the rows of each that differ in the rank, in the data and in the model."""


def other_sweep(of: str = "table") -> str:
    """The best rates of :data:`SWEEPS`. Each model and data set has its own level.

    ``of``: a sweep, for its exponent with the rank; ``table``, a row per sweep, with the scatter of
    log rate around its own power, and around laws whose r_sign is that of tinker-cookbook.
    """
    r_sign = fitted(OUTPUTS).found[0]
    body = []
    for source in SWEEPS if of == "table" else [of]:
        rows = others().query(f"source == '{source}' and {SWEEPS[source]}")
        rows = rows.assign(group=rows["model"] + rows["data"])
        own = fit_rates(rows, power, [-0.3])
        exponent = minus(interval_text(own.found[0], *bounds(rows, power, own)))
        if of != "table":
            return exponent
        laws = [
            fit_rates(rows, lambda each, _, s=s: moved(each, [r_sign, s]), []) for s in (0.5, 1.0)
        ]
        first, ranks = rows.iloc[0], sorted(rows["rank"].unique())
        models = ", ".join(map(str, rows["model"].unique()))
        alpha = f"{first['alpha']:g}"
        if rows["gamma"].nunique() == 1:
            alpha = f"{first['gamma']:g}r".removeprefix("1")
        about = [source, models, alpha, f"{ranks[0]} to {ranks[-1]}", f"{first['steps']:,}"]
        body.append([*about, exponent, *(f"{one.scatter:.2f}" for one in (own, *laws))])
    heads = ["sweep", "models", "α", "ranks", "steps", "exponent", "scatter: its own power"]
    return table([*heads, "equal outputs, s = 1/2", "equal outputs, s = 1"], body)


@style.paper()
def one_constant() -> Figure:
    """The best rates of dense models and of mixtures of experts against the rank with three laws,
    which cross at rank 8, and r_sign of each model alone against its size."""
    rates, facts = usable(), usable().drop_duplicates("group").set_index("group")
    models = facts.join(np.exp(of_each(usable(), *LAWS[OUTPUTS])))
    best, looks = fitted(OUTPUTS), {law: {"color": style.INK, "ls": x} for law, x in LINES.items()}
    page = style.figure(1, 3, ratio=1.0, above=0.5)
    left, middle, right = page.subplots(1, 3)
    middle.sharey(left)
    at = pd.DataFrame({"rank": np.r_[8, np.geomspace(1, 128, 99)]})
    at = at.assign(gamma=1 / at["rank"])
    for ax, (kind, colour), experts in zip((left, middle), KINDS.items(), (0, 1), strict=True):
        own, here = (rows[rows["experts"] == experts] for rows in (rates, models))
        y = np.exp(own["log_lr"] - own["group"].map(best.levels) - moved(at, best.found)[0])
        look: dict[str, Any] = {"color": colour, "ms": 3.5, "mfc": "none", "ls": "none"}
        for edge, marker in MARKERS.items():
            beyond = own["edge"] == edge
            ax.plot(own["rank"][beyond], y[beyond], marker=marker, **look)
        for law, of_law in looks.items():
            z = LAWS[law][0](at, fitted(law).found)
            ax.plot(at["rank"][1:], np.exp(z - z[0])[1:], lw=0.9, **of_law)
        style.rank_axis(ax, [1, 4, 16, 64, 128], 2.0)
        ax.set_title(kind, color=colour)
        x, high = here["billions"], here["high"].clip(upper=MOST)
        right.vlines(x, here["low"].clip(lower=1), high, color=colour, linewidth=0.8, gid=kind)
        right.plot(x, here["value"].clip(1, MOST), "o", color=colour, ms=3)
    style.y_axis([left], "best learning rate", "over the law at rank 8")
    right.set(xscale="log", yscale="log", xlabel="weights in billions")
    right.set_title(r"$r_{\mathrm{sign}}$ of each model")
    style.legend(page, looks, 3)
    ends = "Right: bars are intervals; one that reaches 1,000 has no upper end."
    return style.finish(page, "Triangles: the best rate lies beyond the rates tried.", ends)
