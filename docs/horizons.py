"""Best learning rates by rank, rule and steps: numbers and tables of many pages, and the figures of
README and docs/one-constant.md."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.interpolate import PchipInterpolator

from docs.blocks import mean_text, study_tables
from docs.blocks import table as read
from docs.rate_fits import Curve, fit_rates, moved, r_sign_text
from study.analysis.losses import final_losses
from study.analysis.rates import rates_by_horizon, setting_of
from study.errors import count_noun
from study.figures import style
from study.report.text import filled, minus, table_of
from study.theory import slope
from study.vocabulary.scaling import RULES
from study.vocabulary.sources import model_label

STUDY, REAL, LONG = "horizons_small", "horizons", "horizons_long"
PAPER = "paper_learning_rate"
TITLES = {
    "lora": "LoRA, γ = α/r",
    "rslora": "rsLoRA, γ = α/√r",
    "crossover": "crossover, γ = α/√(r(r + 40))",
}
TUNED = 16
"""The other ranks keep the best rate of this rank, or of the one that is nearest to it."""
SAME = 1.25
"""A factor of the rate that a tuner does not see."""


def _unit(study: str) -> str:
    """What a loss is the mean over: a token of the small model is a byte."""
    return "byte" if study == STUDY else "token"


def by_seed(rule: str, study: str, steps: str) -> pd.DataFrame:
    """The best rates of a rule after some steps: a row per seed, a column per rank."""
    own = study_tables(study).rates.query(f"scaling == '{rule}' and steps == {steps}")
    return own.pivot(index="seed", columns="rank", values="best_lr")


def geometric(values: "pd.Series[float]") -> float:
    """The geometric mean."""
    return float(np.exp(np.log(values).mean()))


def best_rates(rule: str, study: str, steps: str) -> "pd.Series[float]":
    """By rank, the geometric mean over seeds of :func:`by_seed`."""
    return by_seed(rule, study, steps).apply(geometric)


def slopes(rates: pd.DataFrame) -> "pd.Series[float]":
    """By row, the exponent of its rates with the columns."""
    return rates.apply(lambda row: slope(row.dropna(), row.dropna().index), axis=1)


def rate_change(rule: str, study: str = PAPER, steps: str = "20") -> str:
    """``3.6 times lower``: how the best rate changes from the lowest to the highest rank."""
    best = best_rates(rule, study, steps)
    factor = best.iloc[-1] / best.iloc[0]
    if 1 / SAME < factor < SAME:
        return "the same"
    return f"{factor:.1f} times higher" if factor > 1 else f"{1 / factor:.1f} times lower"


def best_gap(rule: str, study: str = PAPER, steps: str = "20") -> str:
    """The loss of the highest rank less that of the lowest, each at the rate of its lowest mean."""
    where = f"how == 'best' and scaling == '{rule}' and steps == {steps}"
    own = study_tables(study).losses.query(where)
    of_rank = own.pivot(index="seed", columns="rank", values="loss")
    return mean_text(of_rank.iloc[:, -1] - of_rank.iloc[:, 0], 3)


def below_best(lr: str, study: str = PAPER) -> str:
    """``65``: how many times LoRA's best rate at the highest rank is as high as a rate."""
    return f"{best_rates('lora', study, '20').iloc[-1] / float(lr):.0f}"


def rates_within(rule: str, steps: str, study: str = STUDY) -> str:
    """``1.12``: the largest best rate of a rank over the smallest."""
    best = best_rates(rule, study, steps)
    return f"{best.max() / best.min():.2f}"


def horizon_seeds(rule: str, steps: str, study: str = STUDY) -> str:
    """``3 seeds``: how many the best rates of a rule after some steps have."""
    return count_noun(len(by_seed(rule, study, steps)), "seed")


def horizon_exponent(rule: str, steps: str, study: str = STUDY, ranks: str = "") -> str:
    """``0.079 [0.004, 0.153]``: the exponent of the best rate over all ranks or some, by seed."""
    rates = by_seed(rule, study, steps)
    return mean_text(slopes(rates[list(map(float, ranks.split(",")))] if ranks else rates), 3)


def bend(rule: str, steps: str, study: str = REAL) -> str:
    """``1.07 [0.79, 1.35]``: the best rate of the middle rank over the geometric mean of those of
    the lowest and the highest one, by seed. A power of the rank says 1."""
    rates = by_seed(rule, study, steps).to_numpy()
    middle = rates.shape[1] // 2
    ratio = pd.Series(rates[:, middle] / np.sqrt(rates[:, 0] * rates[:, -1]))
    return mean_text(ratio.dropna())


def steps_exponent(rule: str, rank: str, study: str = STUDY) -> str:
    """``0.07 [0.01, 0.12]``: the exponent of the best rate with the number of steps, over seeds
    that have each number."""
    rates = study_tables(study).rates.query(f"scaling == '{rule}' and rank == {rank}")
    return mean_text(slopes(rates.pivot(index="seed", columns="steps", values="best_lr").dropna()))


def tuned_rank(steps: str, study: str) -> int:
    """The rank whose best rate after some steps the other ranks keep: that nearest to
    :data:`TUNED`."""
    ranks = study_tables(study).rates.query(f"steps == {steps}")["rank"]
    return int(min(ranks, key=lambda rank: abs(np.log(rank / TUNED))))


def losses(steps: str, study: str = STUDY) -> pd.DataFrame:
    """Final held-out losses of a study: ``scaling``, ``rank``, ``seed``, ``lr``, ``loss``."""
    tables = study_tables(study)
    found = final_losses(tables.cells, tables.metrics).astype({"scaling": str})
    return found[found["steps"] == int(steps)].dropna(subset="loss")


def kept(steps: str, study: str = STUDY) -> pd.DataFrame:
    """By rule and seed, what all ranks lose at the best rate of :func:`tuned_rank`.

    ``regret``: the mean over the other ranks of the loss at the kept rate less the lowest loss,
    nats per token. Losses between rates are interpolated without overshoot (PCHIP in log rate).
    ``share``: regret over the lowest loss of the lowest rank less that of the highest one.
    """
    kept_rank, rows = tuned_rank(steps, study), []
    for (rule, seed), own in losses(steps, study).groupby(["scaling", "seed"]):
        log_lr, regret = np.log(by_seed(rule, study, steps).loc[seed, kept_rank]), []
        for rank, of_rank in own.sort_values("lr").groupby("rank"):
            curve = PchipInterpolator(np.log(of_rank["lr"]), of_rank["loss"])
            if rank != kept_rank:
                regret.append(float(curve(log_lr)) - of_rank["loss"].min())
        lowest = own.groupby("rank")["loss"].min()
        gain = lowest.iloc[0] - lowest.iloc[-1]
        rows.append((rule, seed, np.mean(regret), np.mean(regret) / gain))
    return pd.DataFrame(rows, columns=["rule", "seed", "regret", "share"])


def regret_gap(rule: str, steps: str) -> str:
    """What a rule loses at the best rate of rank 16 less what crossover loses, nats, by seed."""
    regret = kept(steps).pivot(index="seed", columns="rule", values="regret")
    return mean_text(regret[rule] - regret["crossover"], 4)


def rules_test(steps: str, study: str = STUDY) -> str:
    """A row per rule that was trained for ``steps``: how far the best rates of the ranks lie apart,
    and what one rate costs."""
    regret, rows = dict(iter(kept(steps, study).groupby("rule"))), []
    for rule in (rule for rule in TITLES if rule in regret):
        row = {"rule": RULES[rule].label}
        row |= {f"rank {r:g}": f"{lr:.2g}" for r, lr in best_rates(rule, study, steps).items()}
        row["largest / smallest"] = rates_within(rule, steps, study)
        head = f"regret at the best rate of rank {tuned_rank(steps, study)}, nats"
        row[head] = mean_text(regret[rule]["regret"], 4)
        rows.append(row | {"the same, share of the ranks' gain": mean_text(regret[rule]["share"])})
    return table_of(rows)


def by_steps(study: str = STUDY) -> str:
    """A row per rule and number of steps: exponent, best rates, and the gain of the highest rank.

    Exponents are slopes over all ranks by seed. Gains are losses of the highest rank less those of
    the lowest, each at its best rate.
    """
    rates, rows = study_tables(study).rates, list[dict[str, str]]()
    every, longest = sorted(rates["rank"].unique()), str(rates["steps"].max())
    low, *others = sorted({every[0], tuned_rank(longest, study), every[-1]})
    gain = f"loss of rank {others[-1]:g} less rank {low:g}, nats per {_unit(study)}"
    for rule in TITLES:
        for steps in sorted(rates.query(f"scaling == '{rule}'")["steps"].unique()):
            at, best = (str(steps), study), best_rates(rule, study, str(steps))
            row = {
                "rule": RULES[rule].label,
                "steps": f"{steps:g}",
                "seeds": str(len(by_seed(rule, study, str(steps)))),
                "exponent of the best rate": horizon_exponent(rule, *at),
                "r_sign at s = 1/2": steps_constant(rule, *at),
                f"best rate, rank {low:g}": f"{best[low]:.2g}",
                **{f"rank {r:g}": f"{best[r]:.2g}" if r in best else "" for r in others},
                gain: best_gap(rule, study, str(steps)),
            }
            rows.append(row)
    return table_of(rows)


def rounding(steps: str = "256") -> str:
    """A row per rank and rate that were trained in float32 and, at the same seeds, in bf16: losses
    of LoRA after some steps."""
    at = ["rank", "lr", "seed"]
    both = [losses(steps, study).query("scaling == 'lora'").set_index(at) for study in (REAL, LONG)]
    found = both[0][["loss"]].join(both[1]["loss"], how="inner", rsuffix="_bf16").reset_index()
    rows = []
    for (rank, lr), own in found.groupby(["rank", "lr"]):
        loss, rounded = own["loss"].mean(), own["loss_bf16"].mean()
        row = {"rank": f"{rank:g}", "learning rate": f"{lr:g}", "float32": f"{loss:.3f}"}
        row |= {"bf16": f"{rounded:.3f}", "bf16 less float32": minus(f"{rounded - loss:+.3f}")}
        rows.append(row | {"seeds": str(len(own))})
    return table_of(rows)


def law_rows(steps: str, study: str) -> pd.DataFrame:
    """Best rates of all rules and seeds after some steps, as :func:`fit_rates` reads them."""
    rates = study_tables(study).rates.query(f"steps == {steps}").astype({"scaling": str})
    gammas = [setting_of(row).gamma for _, row in rates.iterrows()]
    return rates.assign(group="all", log_lr=np.log(rates["best_lr"]), gamma=gammas)


RIVALS: dict[str, tuple[Curve, list[float]]] = {
    "descents": (lambda rows, t: -t[0] * np.log(rows["gamma"] * rows["rank"]).to_numpy(), [0.5]),
    "power": (
        lambda rows, t: -np.log(rows[["gamma", "rank"]]).to_numpy() @ np.array(t),
        [0.5, 0.5],
    ),
}
"""Equal descents; and a power of gamma and of the rank, with free exponents."""


def horizons_law(name: str, steps: str = "256", study: str = STUDY) -> str:
    """``11 [8, 15]``: r_sign of the law of equal outputs, fitted with s to the best rates of all
    rules and seeds. ``descents``, ``power``: how much worse these fit, in -2 log likelihood."""
    rows = law_rows(steps, study)
    found = fit_rates(rows, moved, [2.5, 0.5])
    if name in RIVALS:
        return f"{fit_rates(rows, *RIVALS[name]).cost - found.cost:.0f}"
    return f"{found.found[1]:.2f}" if name == "s" else r_sign_text(rows, found)


def steps_constant(rule: str, steps: str, study: str = STUDY) -> str:
    """``24 [9, 103]``: r_sign of equal outputs with s = 1/2, fitted to the best rates of a rule.
    Empty for two rates: they are fitted exactly."""
    rows = law_rows(steps, study).query(f"scaling == '{rule}'")
    return r_sign_text(rows, fit_rates(rows, moved, [2.5])) if len(rows) > 2 else ""


def _powers(rates: pd.DataFrame, over: str, of: str = "table") -> str:
    """A row per rank: the best rate at each value of a column, and its exponent with these values.

    Then the mean of the exponents over ranks, and the highest rank's less the lowest's. ``of``:
    ``mean`` or ``apart`` is one of these two alone. Seeds that lack a value are left out.
    """
    found = rates.pivot(index=["rank", "seed"], columns=over, values="best_lr").dropna()
    by_rank = slopes(found).unstack("rank")
    of_seed = by_rank.dropna()
    joint = {"mean": of_seed.mean(axis=1), "apart": of_seed.iloc[:, -1] - of_seed.iloc[:, 0]}
    if of in joint:
        return mean_text(joint[of])
    rows = []
    for rank, own in found.groupby("rank"):
        best = {f"{value:g}": f"{one:.2g}" for value, one in own.apply(geometric).items()}
        row = {"rank": f"{rank:g}", **best, "exponent": mean_text(by_rank[rank].dropna())}
        rows.append(row | {"seeds": str(len(own))})
    for name, values in zip(("mean", "highest less lowest"), joint.values(), strict=True):
        rows.append({"rank": name, "exponent": mean_text(values), "seeds": str(len(values))})
    return table_of(filled(rows))


def batches(held: str, of: str = "table") -> str:
    """The best rate against the batch, at equal ``steps`` or at equal ``data``. The smallest batch
    is that of :data:`STUDY`."""
    own = study_tables(STUDY).rates.query("scaling == 'lora' and rank in [4, 64]")
    rates = pd.concat([own, study_tables("batches_small").rates], ignore_index=True)
    if held == "steps":
        rates = rates[rates["steps"] == 64]
    else:
        rates = rates[rates["steps"] * rates["batch_size"] == 768]
    return _powers(rates, "batch_size", of)


def constant_rate(of: str = "table") -> str:
    """The best constant rate against the number of steps."""
    tables = study_tables("constant_small")
    rates = rates_by_horizon(tables.cells, tables.metrics, tables.probes)
    return _powers(rates[rates["horizon"].isin([64, 128, 256, 512, 1024])], "horizon", of)


def settings() -> str:
    """A row per weight decay, LoRA+ ratio and drawn matrix: best rate and lowest loss by rank. In
    brackets, the best rate over that of :data:`STUDY`, which has none of these."""
    known = study_tables(STUDY).rates.query("scaling == 'lora' and steps == 1024")
    known = known[known["rank"].isin([4, 64])]
    plain, rows = known.set_index(["rank", "seed"]), []
    names = ["weight_decay", "loraplus_lr_ratio", "init"]
    rates = pd.concat([known, study_tables("decay_small").rates]).astype({"init": str})
    for (decay, ratio, init), own in rates.groupby(names, sort=False):
        own = own.set_index(["rank", "seed"])
        shared = own.index.intersection(plain.index)
        row = {"weight decay": f"{decay:g}", "LoRA+ ratio": f"{ratio:g}"}
        row["drawn"] = "B" if init == "init_b" else "A"
        for rank, one in own.loc[shared].groupby("rank"):
            beside = plain.loc[one.index]
            best, times = geometric(one["best_lr"]), geometric(one["best_lr"] / beside["best_lr"])
            row[f"best rate, rank {rank:g}"] = f"{best:.2g} (×{times:.2f})"
            more = (one["best_loss"] - beside["best_loss"]).mean()
            row[f"loss less that of the first row, rank {rank:g}"] = minus(f"{more:+.4f}")
        rows.append(row | {"seeds": str(shared.unique("seed").size)})
    return table_of(filled(rows))


def factorial(of: str = "table") -> str:
    """A row per base of factorial_small: the best rate of each rank, and its exponents over all
    ranks and between the two highest. ``width``, ``depth``: the exponent at the smallest less that
    at the largest, by seed, as the mean over the other factor. ``above``: as ``width``, of the
    exponent between the two highest ranks."""
    rates = study_tables("factorial_small").rates
    rates = rates.join(rates["model"].str.extract(r"w(?P<wide>\d+)d(?P<deep>\d+)").astype(int))
    best = rates.pivot(index=["wide", "deep", "seed"], columns="rank", values="best_lr")
    every, highest = slopes(best), slopes(best.iloc[:, -2:])
    if of != "table":
        by = ["deep" if of == "depth" else "wide", "seed"]
        means = (highest if of == "above" else every).groupby(by).mean().unstack("seed")
        return mean_text(means.iloc[0] - means.iloc[-1], 3)
    rows = []
    for (wide, deep), own in best.groupby(["wide", "deep"]):
        row = {"width": str(wide), "blocks": str(deep)}
        row |= {f"rank {rank:g}": f"{geometric(lr):.2g}" for rank, lr in own.items()}
        row["exponent"] = mean_text(every[wide, deep], 3)
        row["between the two highest ranks"] = mean_text(highest[wide, deep], 3)
        rows.append(row | {"seeds": str(len(own))})
    return table_of(rows)


def r_parts() -> str:
    """r_parts on held-out rows by step: the median over layers. Where the parts work against each
    other, it counts as infinite."""
    found, of_cell = read("r_sign/r_sign"), ["model", "scaling", "lr", "batch_size", "rank"]
    found = found.assign(value=found["r_parts"].where(found["r_parts"] > 0, np.inf))
    by_step = found.groupby([*of_cell, "step"])["value"].median().unstack("step")
    rows = []
    for (model, rule, lr, batch, rank), values in by_step.iterrows():
        row = {"model": model_label(model), "rule": RULES[rule].label, "rate": f"{lr:g}"}
        row |= {"sequences": f"{batch:g}", "rank": f"{rank:g}"}
        texts = values.dropna().map("{:.0f}".format).replace("inf", "∞")
        rows.append(row | {f"step {step}": text for step, text in texts.items()})
    rows.sort(key=lambda row: row["model"] != model_label("small"))
    return table_of(filled(rows))


def panels_of_rules(stacked: bool = False) -> tuple[Figure, list[Axes]]:
    """A page with a panel for each of :data:`TITLES`."""
    size, grid = ((3.6, 6.4), (3, 1)) if stacked else ((7.2, 2.7), (1, 3))
    page = Figure(figsize=size, layout="constrained")
    panels = list(page.subplots(*grid, sharex=True, sharey=True).flat)
    for ax, title in zip(panels, TITLES.values(), strict=True):
        ax.set_title(title, fontsize=9)
    return page, panels


@style.paper()
def hero(study: str, steps: str = "256", stacked: bool = False) -> Figure:
    """A panel per rule, a line per rank over one axis of rates; dots are the best rates. Diverging
    runs leave the panel: it ends above the loss of the lowest rates."""
    runs = losses(steps, study)
    page, panels = panels_of_rules(stacked)
    for ax, rule in zip(panels, TITLES, strict=True):
        draw(ax, runs[runs["scaling"] == rule], best_rates(rule, study, steps))
        ax.set_xscale("log")
        ax.set_xticks(sorted(runs["lr"].unique()))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:.4f}".rstrip("0"))
        ax.xaxis.set_minor_locator(NullLocator())
    means = runs.groupby(["scaling", "rank", "lr"])["loss"].mean()
    low, slow = means.min(), means.groupby(["scaling", "rank"]).first().max()
    panels[0].set_ylim(low - 0.1 * (slow - low), slow + 0.4 * (slow - low))
    for ax in panels if stacked else panels[:1]:
        ax.set_ylabel(f"held-out loss\n(nats per {_unit(study)})")
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


@style.paper()
def best_by_steps() -> Figure:
    """A panel per rule: the best rate against the rank, a line per number of steps."""
    page, panels = panels_of_rules()
    rates = study_tables(STUDY).rates
    for ax, rule in zip(panels, TITLES, strict=True):
        for index, steps in enumerate(sorted(rates["steps"].unique())):
            own = rates.query(f"scaling == '{rule}' and steps == {steps}")
            look: dict[str, Any] = {"color": matplotlib.colormaps["viridis"](0.8 - 0.4 * index)}
            ax.plot(own["rank"], own["best_lr"], "o", ms=3, alpha=0.5, mew=0, **look)
            if len(own):
                best = best_rates(rule, STUDY, str(steps))
                ax.plot(best.index, best, "-", lw=1.4, label=f"{steps:g} steps", **look)
        ax.set(xscale="log", yscale="log", xlabel="rank")
        ax.set_xticks(sorted(rates["rank"].unique()))
        ax.set_yticks([0.001, 0.002, 0.004, 0.008])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("best learning rate")
    page.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return page
