"""The test of three scaling rules where people train: README's figure and its table."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.interpolate import PchipInterpolator

from docs.blocks import Block, study_tables
from docs.blocks import table as read
from docs.numbers import best_gap, best_rates
from docs.rate_fits import Curve, bounds, fit_rates, moved
from study.analysis.fits import mean_interval
from study.analysis.losses import final_losses
from study.analysis.rates import rates_by_horizon
from study.analysis.wording import interval_text
from study.errors import count_noun
from study.figures import style
from study.report.text import minus, table
from study.theory import slope
from study.vocabulary.scaling import RULES
from study.vocabulary.sources import model_label

STUDY = "horizons_small"
TITLES = {
    "lora": "LoRA, γ = α/r",
    "rslora": "rsLoRA, γ = α/√r",
    "crossover": "crossover, γ = α/√(r(r + 40))",
}
TUNED = 16
"""The rank whose best rate the other ranks keep, in a study that has it."""


def tuned_rank(study: str) -> int:
    """The rank whose best rate the other ranks keep: :data:`TUNED`, or the lowest rank."""
    ranks = set(study_tables(study).rates["rank"])
    return TUNED if TUNED in ranks else int(min(ranks))


def losses(steps: str, study: str = STUDY) -> pd.DataFrame:
    """Final held-out losses of a study: ``scaling``, ``rank``, ``seed``, ``lr``, ``loss``."""
    tables = study_tables(study)
    found = final_losses(tables.cells, tables.metrics)
    return found[found["steps"] == int(steps)].dropna(subset="loss")


def kept(steps: str, study: str = STUDY) -> pd.DataFrame:
    """By rule and seed, what all ranks lose at the best rate of :func:`tuned_rank`.

    ``regret``: the mean over the other ranks of the loss at the kept rate less the lowest loss,
    nats per token. Losses between rates are interpolated without overshoot (PCHIP in log rate).
    ``share``: regret over the lowest loss of the lowest rank less that of the highest one.
    """
    runs, rates, kept_rank = losses(steps, study), study_tables(study).rates, tuned_rank(study)
    rates = rates[rates["steps"] == int(steps)].astype({"scaling": str})
    tuned = rates[rates["rank"] == kept_rank].set_index(["scaling", "seed"])["best_lr"]
    rows = []
    for (rule, seed), own in runs.astype({"scaling": str}).groupby(["scaling", "seed"]):
        lowest, regret = {}, []
        for rank, of_rank in own.sort_values("lr").groupby("rank"):
            curve = PchipInterpolator(np.log(of_rank["lr"]), of_rank["loss"])
            lowest[rank] = of_rank["loss"].min()
            if rank != kept_rank:
                regret.append(float(curve(np.log(tuned[rule, seed]))) - lowest[rank])
        gain = lowest[min(lowest)] - lowest[max(lowest)]
        rows.append((rule, seed, np.mean(regret), np.mean(regret) / gain))
    return pd.DataFrame(rows, columns=["rule", "seed", "regret", "share"])


def regret_gap(rule: str, steps: str) -> str:
    """What a rule loses at the best rate of rank 16 less what crossover loses, nats, by seed."""
    regret = kept(steps).pivot(index="seed", columns="rule", values="regret")
    return minus(interval_text(*mean_interval(regret[rule] - regret["crossover"]), places=4))


def within(rule: str, steps: str, study: str = STUDY) -> str:
    """``1.12``: the largest best rate of a rank over the smallest."""
    best = best_rates(rule, study, steps)
    return f"{best.max() / best.min():.2f}"


def rules_test(steps: str, study: str = STUDY) -> str:
    """A row per rule that was trained for ``steps``: how far the best rates of the ranks lie apart,
    and what one rate costs."""
    found, rates = kept(steps, study), study_tables(study).rates
    ranks = sorted(rates["rank"].unique())
    heads = ["rule", *(f"rank {rank:g}" for rank in ranks), "largest / smallest"]
    heads.append(f"regret at the best rate of rank {tuned_rank(study)}, nats")
    heads.append("the same, share of the ranks' gain")
    body = []
    for rule in (rule for rule in TITLES if rule in set(found["rule"])):
        best, own = best_rates(rule, study, steps), found[found["rule"] == rule]
        texts = [
            interval_text(*mean_interval(own[one]), places=places)
            for one, places in (("regret", 4), ("share", 2))
        ]
        rounded = (f"{best[rank]:.2g}" for rank in ranks)
        body.append([RULES[rule].label, *rounded, within(rule, steps, study), *texts])
    return minus(table(heads, body))


@style.paper()
def hero(steps: str = "256", stacked: bool = False) -> Figure:
    """A panel per rule, a line per rank over one axis of rates; dots are the best rates."""
    runs = losses(steps)
    size, grid = ((3.6, 6.4), (3, 1)) if stacked else ((7.2, 2.7), (1, 3))
    page = Figure(figsize=size, layout="constrained")
    panels = page.subplots(*grid, sharex=True, sharey=True).ravel()
    for ax, (rule, title) in zip(panels, TITLES.items(), strict=True):
        draw(ax, runs[runs["scaling"] == rule], best_rates(rule, STUDY, steps))
        ax.set_title(title, fontsize=9)
    panels[0].set_ylim(runs["loss"].min() - 0.008, runs["loss"].min() + 0.1)
    for ax in panels if stacked else panels[:1]:
        ax.set_ylabel("held-out loss\n(nats per byte)")
    for ax in panels[-1:] if stacked else panels:
        ax.set_xlabel("learning rate")
    handles, labels = panels[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=3 if stacked else 5, fontsize=8)
    return page


def draw(ax: Axes, runs: pd.DataFrame, best: "pd.Series[float]") -> None:
    """The mean loss over seeds by rank, and the best rate of each rank."""
    ranks, colours = sorted(runs["rank"].unique()), matplotlib.colormaps["viridis"]
    for index, rank in enumerate(ranks):
        colour = colours(0.85 - 0.85 * index / (len(ranks) - 1))  # yellow is faint on white
        look: dict[str, Any] = {"color": colour, "zorder": 2 + index}
        own = runs[runs["rank"] == rank].groupby("lr")["loss"].mean()
        ax.plot(own.index, own, ".-", ms=4, lw=1.2, label=f"rank {rank:g}", **look)
        at = np.interp(np.log(best[rank]), np.log(own.index), own)
        ax.plot(best[rank], at, "o", ms=6, mec="white", mew=0.7, **look)
    ax.set_xscale("log")
    ax.set_xticks(sorted(runs["lr"].unique()))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.4f}".rstrip("0"))
    ax.xaxis.set_minor_locator(NullLocator())


def parts() -> str:
    """r_parts on held-out rows by step: the median over layers. Where the parts work against each
    other, it counts as infinite."""
    found, of_cell = read("r_sign/r_sign"), ["model", "scaling", "lr", "batch_size", "rank"]
    found["value"] = found["r_parts"].where(found["r_parts"] > 0, np.inf)
    by_step = found.groupby([*of_cell, "step"])["value"].median().unstack("step")
    heads = ["model", "rule", "rate", "sequences", "rank", *(f"step {step}" for step in by_step)]
    rows = sorted(by_step.iterrows(), key=lambda row: (row[0][0] != "small", *row[0][:2]))
    body = []
    for (model, rule, *own), values in rows:
        texts = ["" if np.isnan(value) else f"{value:.0f}".replace("inf", "∞") for value in values]
        body.append([model_label(model), RULES[rule].label, *(f"{x:g}" for x in own), *texts])
    return table(heads, body)


def law_rows(steps: str, study: str = STUDY) -> pd.DataFrame:
    """Best rates of all rules and seeds after some steps, as :func:`fit_rates` reads them."""
    rates = study_tables(study).rates.query(f"steps == {steps}").astype({"scaling": str})
    gammas = study_tables(study).cells.astype({"scaling": str})
    gammas = gammas.groupby(["scaling", "rank"])["gamma"].first()
    places = pd.MultiIndex.from_frame(rates[["scaling", "rank"]])
    log_lr, gamma = np.log(rates["best_lr"]), gammas[places].to_numpy()
    return rates.assign(group="all", log_lr=log_lr, gamma=gamma)


def law(name: str, steps: str = "256", study: str = STUDY) -> str:
    """``11 [8, 15]``: r_sign of the law of equal outputs, fitted with s to the best rates of all
    rules and seeds. ``descents``, ``power``: how much worse these fit, in -2 log likelihood."""
    rows = law_rows(steps, study)
    found = fit_rates(rows, moved, [2.5, 0.5])
    if name == "s":
        return f"{found.found[1]:.2f}"
    if name in RIVALS:
        return f"{fit_rates(rows, *RIVALS[name]).cost - found.cost:.0f}"
    low, high = np.exp(bounds(rows, moved, found))
    return f"{np.exp(found.found[0]):.0f} [{low:.0f}, {high:.0f}]".replace("inf", "∞")


RIVALS: dict[str, tuple[Curve, list[float]]] = {
    "descents": (lambda rows, t: -t[0] * np.log(rows["gamma"] * rows["rank"]).to_numpy(), [0.5]),
    "power": (
        lambda rows, t: -np.log(rows[["gamma", "rank"]]).to_numpy() @ np.array(t),
        [0.5, 0.5],
    ),
}
"""Equal descents; and a power of gamma and of the rank, with free exponents."""


def seeds(rule: str, steps: str, study: str = STUDY) -> str:
    """``3 seeds``: how many the best rates of a rule after some steps have."""
    own = study_tables(study).rates.query(f"scaling == '{rule}' and steps == {steps}")
    return count_noun(own["seed"].nunique(), "seed")


def exponent(rule: str, steps: str, study: str = STUDY, ranks: str = "") -> str:
    """``0.079 [0.004, 0.153]``: the exponent of the best rate over all ranks or some, by seed."""
    own = study_tables(study).rates.query(f"scaling == '{rule}' and steps == {steps}")
    own = own.query(f"rank in [{ranks}]") if ranks else own
    slopes = [slope(one["best_lr"], one["rank"]) for _, one in own.groupby("seed")]
    return minus(interval_text(*mean_interval(slopes), places=3))


def constant(rule: str, steps: str, study: str = STUDY) -> str:
    """``24 [9, 103]``: r_sign of equal outputs with s = 1/2, fitted to the best rates of a rule.
    Empty for two rates: they are fitted exactly."""
    rows = law_rows(steps, study).query(f"scaling == '{rule}'")
    if len(rows) == 2:
        return ""
    found = fit_rates(rows, moved, [2.5])
    low, high = np.exp(bounds(rows, moved, found))
    return f"{np.exp(found.found[0]):.0f} [{low:.0f}, {high:.0f}]".replace("inf", "∞")


def by_steps(study: str = STUDY) -> str:
    """A row per rule and number of steps: exponent, best rates, and the gain of the highest rank.

    Exponents are slopes over all ranks by seed. Gains are losses of the highest rank less those of
    the lowest, each at its best rate.
    """
    every = sorted(study_tables(study).rates["rank"].unique())
    ranks = sorted({every[0], tuned_rank(study), every[-1]})
    heads = ["rule", "steps", "seeds", "exponent of the best rate", "r_sign at s = 1/2"]
    heads += [f"best rate, rank {ranks[0]:g}", *(f"rank {rank:g}" for rank in ranks[1:])]
    unit = "byte" if study == STUDY else "token"
    heads.append(f"loss of rank {ranks[-1]:g} less rank {ranks[0]:g}, nats per {unit}")
    body = []
    for rule in TITLES:
        rates = study_tables(study).rates.query(f"scaling == '{rule}'")
        for steps, own in rates.groupby("steps"):
            at = str(steps), study
            best = best_rates(rule, study, str(steps))
            row = [RULES[rule].label, f"{steps:g}", str(own["seed"].nunique())]
            row += [
                exponent(rule, *at),
                constant(rule, *at),
                *(f"{best[rank]:.2g}" for rank in ranks),
            ]
            body.append([*row, best_gap(rule, study, str(steps))])
    return minus(table(heads, body))


def steps_exponent(rule: str, rank: str) -> str:
    """``0.07 [0.01, 0.12]``: the exponent of the best rate with the number of steps, over seeds
    that have each number."""
    rates = study_tables(STUDY).rates.query(f"scaling == '{rule}' and rank == {rank}")
    of_seed = rates.pivot(index="seed", columns="steps", values="best_lr").dropna()
    slopes = [slope(row, of_seed.columns) for _, row in of_seed.iterrows()]
    return minus(interval_text(*mean_interval(slopes)))


@style.paper()
def best_by_steps() -> Figure:
    """A panel per rule: the best rate against the rank, a line per number of steps."""
    page = Figure(figsize=(7.2, 2.7), layout="constrained")
    panels = page.subplots(1, 3, sharex=True, sharey=True)
    rates = study_tables(STUDY).rates
    counts = sorted(rates["steps"].unique())
    for ax, (rule, title) in zip(panels, TITLES.items(), strict=True):
        for index, steps in enumerate(counts):
            own = rates.query(f"scaling == '{rule}' and steps == {steps}")
            if own.empty:
                continue
            look: dict[str, Any] = {"color": matplotlib.colormaps["viridis"](0.8 - 0.4 * index)}
            best = best_rates(rule, STUDY, str(steps))
            ax.plot(own["rank"], own["best_lr"], "o", ms=3, alpha=0.5, mew=0, **look)
            ax.plot(best.index, best, "-", lw=1.4, label=f"{steps:g} steps", **look)
        ax.set(xscale="log", yscale="log", title=title, xlabel="rank")
        ax.title.set_fontsize(9)
        ax.set_xticks(sorted(rates["rank"].unique()))
        ax.set_yticks([0.001, 0.002, 0.004, 0.008])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("best learning rate")
    page.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return page


def powers(rates: pd.DataFrame, over: str, of: str = "table") -> str:
    """A row per rank: the best rate at each value of a column, and its exponent with these values.

    Then the mean of the exponents over ranks, and the highest rank's less the lowest's. ``of``:
    ``mean`` or ``apart`` is one of these two alone. Seeds that lack a value are left out.
    """
    found = rates.pivot(index=["rank", "seed"], columns=over, values="best_lr").dropna()
    slopes = found.apply(lambda row: slope(row, found.columns), axis=1)
    of_seed = slopes.unstack("rank").dropna()
    joint = {"mean": of_seed.mean(axis=1), "apart": of_seed.iloc[:, -1] - of_seed.iloc[:, 0]}
    if of in joint:
        return minus(interval_text(*mean_interval(joint[of])))
    heads = ["rank", *(f"{value:g}" for value in found), "exponent", "seeds"]
    body = []
    for rank, own in found.groupby("rank"):
        best, exponents = np.exp(np.log(own).mean()), slopes[rank]
        texts = [*(f"{one:.2g}" for one in best), interval_text(*mean_interval(exponents))]
        body.append([f"{rank:g}", *texts, f"{len(exponents)}"])
    for name, values in zip(("mean", "highest less lowest"), joint.values(), strict=True):
        interval = interval_text(*mean_interval(values))
        body.append([name, *[""] * found.shape[1], interval, f"{len(values)}"])
    return minus(table(heads, body))


def batches(held: str, of: str = "table") -> str:
    """The best rate against the batch, at equal ``steps`` or at equal ``data``. The smallest batch
    is that of :data:`STUDY`."""
    own = study_tables(STUDY).rates.query("scaling == 'lora' and rank in [4, 64]")
    rates = pd.concat([own, study_tables("batches_small").rates], ignore_index=True)
    rows = rates["steps"] * rates["batch_size"]
    return powers(rates[rates["steps"] == 64 if held == "steps" else rows == 768], "batch_size", of)


def constant_rate(of: str = "table") -> str:
    """The best constant rate against the number of steps."""
    tables = study_tables("constant_small")
    rates = rates_by_horizon(tables.cells, tables.metrics, tables.probes)
    return powers(rates[rates["horizon"].isin([64, 128, 256, 512, 1024])], "horizon", of)


BLOCKS: dict[str, Block] = {
    "batches": batches,
    "constant-rate": constant_rate,
    "regret-gap": regret_gap,
    "rates-within": within,
    "steps-constant": constant,
    "horizon-exponent": exponent,
    "horizon-seeds": seeds,
    "steps-exponent": steps_exponent,
    "by-steps": by_steps,
    "rules-test": rules_test,
    "r-parts": parts,
    "horizons-law": law,
}
