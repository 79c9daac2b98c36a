"""Best learning rates by rank, rule and steps: numbers and tables of many pages, and the figures of
README and docs/best-rates.md."""

from collections.abc import Callable, Collection
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.interpolate import BarycentricInterpolator, PchipInterpolator

from research.blocks import mean_text, study_tables
from research.blocks import table as read
from research.rate_fits import Curve, fit_rates, moved, r_sign_ends, r_sign_text
from study.analysis.fits import mean_interval
from study.analysis.losses import at_common_rates, final_losses, mean_losses
from study.analysis.rates import NORMAL, rate_transfer, rates_by_horizon, setting_of
from study.analysis.rates import best_rates as find_rates
from study.analysis.text import filled, minus, table_of
from study.analysis.wording import interval_text
from study.errors import count_noun
from study.figures import style
from study.theory import slope
from study.vocabulary.scaling import RULES
from study.vocabulary.sources import model_label

STUDY, REAL, LONG = "horizons_small", "horizons", "horizons_long"
TITLES = {
    "lora": "LoRA, γ = α/r",
    "rslora": "rsLoRA, γ = α/√r",
    "crossover": "crossover, γ = α/√(r(r + 40))",
    "power": "α = r, γ = 1",
}
"""The rules of these studies, as titles of panels. The rule power has p = 0 and α = 1 there: γ is 1
at every rank, as with α = r."""
USED = "lora", "rslora", "crossover"
"""The rules whose costs are compared. The best rates with α = r lie far apart."""
TUNED = 16
"""The other ranks keep the best rate of this rank, or of the one that is nearest to it."""


def _name_of(rule: str) -> str:
    """The name of a rule, without its formula."""
    return TITLES[rule].partition(",")[0]


def rates_of(rule: str, steps: str, study: str) -> pd.DataFrame:
    """The best rates of a rule after some steps: a row per rank and seed."""
    return study_tables(study).rates.query(f"scaling == '{rule}' and steps == {steps}")


def by_seed(rates: pd.DataFrame) -> pd.DataFrame:
    """The best rates: a row per seed, a column per rank."""
    return rates.pivot(index="seed", columns="rank", values="best_lr")


def geometric(values: "pd.Series[float]") -> float:
    """The geometric mean."""
    return float(np.exp(np.log(values).mean()))


def best_rates(rule: str, steps: str, study: str) -> "pd.Series[float]":
    """By rank, the geometric mean over seeds of :func:`by_seed`."""
    return by_seed(rates_of(rule, steps, study)).apply(geometric)


def slopes(rates: pd.DataFrame) -> "pd.Series[float]":
    """By row, the exponent of its rates with the columns."""
    return rates.apply(lambda row: slope(row.dropna(), row.dropna().index), axis=1)


def best_rate(of: str, rule: str, steps: str, study: str = STUDY, ranks: str = "") -> str:
    """A number of the best rates of a rule after some steps, over all ranks or some.

    - ``change``: ``3.6 times lower``, from the lowest to the highest rank;
    - ``factor``: ``×1.09 [0.63, 1.90]``, the same by the fitted line;
    - ``from16``: ``×0.56 [0.45, 0.68]``, the same from rank 16 to rank 256;
    - ``spread``: ``1.12``, the largest over the smallest;
    - ``exponent``: ``0.079 [0.004, 0.153]``, as in the study's report;
    - ``bend``: ``1.07 [0.79, 1.35]``, that of the middle rank over the geometric mean of those of
      the lowest and the highest one, by seed. A power of the rank says 1;
    - ``seeds``: ``3 seeds``, how many have them;
    - a rate: ``65``, how many times the best one of the highest rank is as high.
    """
    own = rates_of(rule, steps, study)
    own = own[own["rank"].isin(list(map(float, ranks.split(","))))] if ranks else own
    rates, line = by_seed(own), rate_transfer(own).iloc[0]
    exponent = [line[name] for name in ("exponent", "ci_low", "ci_high")]
    best = rates.apply(geometric)
    low, high = best.iloc[0], best.iloc[-1]
    match of:
        case "change":
            factor, way = max((high / low, "higher"), (low / high, "lower"))
            return f"{factor:.1f} times {way}"
        case "factor":
            return _factor_text(line)
        case "from16":
            return f"×{interval_text(*np.power(256 / 16, exponent))}"
        case "spread":
            return f"{best.max() / best.min():.2f}"
        case "exponent":
            return minus(interval_text(*exponent, 3))
        case "bend":
            middle = rates.iloc[:, len(best) // 2]
            return mean_text((middle / np.sqrt(rates.iloc[:, 0] * rates.iloc[:, -1])).dropna())
        case "seeds":
            return count_noun(len(rates), "seed")
    return f"{high / float(of):.0f}"


def _factor_text(line: "pd.Series[float]") -> str:
    """``×1.09 [0.63, 1.90]``: a row of :func:`rate_transfer`, from its lowest to its highest
    rank."""
    ends = line[["exponent", "ci_low", "ci_high"]].to_numpy(float)
    return f"×{interval_text(*np.power(line['rank_max'] / line['rank_min'], ends))}"


NARROWING = 0.0014, 0.0028
"""Rates of rank 4 of rsLoRA in :data:`LONG` that were added in order to narrow its interval."""


def before_narrowing() -> str:
    """``×0.58 [0.34, 1.01]``: the best rate of rsLoRA in :data:`LONG`, from rank 4 to rank 256,
    without the rates :data:`NARROWING`."""
    tables = study_tables(LONG)
    cells = tables.cells
    is_added = (cells["scaling"] == "rslora") & (cells["rank"] == 4) & cells["lr"].isin(NARROWING)
    lines = rate_transfer(find_rates(cells[~is_added], tables.metrics, tables.probes))
    return _factor_text(lines[lines["scaling"] == "rslora"].iloc[0])


def gaps(rule: str, steps: str, study: str) -> "pd.Series[float]":
    """By seed the loss of the highest rank less that of the lowest, each at the rate of its lowest
    mean."""
    where = f"how == 'best' and scaling == '{rule}' and steps == {steps}"
    own = study_tables(study).losses.query(where)
    of_rank = own.pivot(index="seed", columns="rank", values="loss")
    return of_rank.iloc[:, -1] - of_rank.iloc[:, 0]


def best_gap(rule: str, steps: str, study: str) -> str:
    """The mean of :func:`gaps`."""
    return mean_text(gaps(rule, steps, study), 3)


def tuned_rank(steps: str, study: str) -> int:
    """The rank whose best rate after some steps the other ranks keep: that nearest to
    :data:`TUNED`."""
    ranks = study_tables(study).rates.query(f"steps == {steps}")["rank"]
    return int(min(ranks, key=lambda rank: abs(np.log(rank / TUNED))))


def losses(steps: str, study: str) -> pd.DataFrame:
    """Final held-out losses of a study: ``scaling``, ``rank``, ``seed``, ``lr``, ``loss``."""
    tables = study_tables(study)
    found = final_losses(tables.cells, tables.metrics).astype({"scaling": str})
    return found[found["steps"] == int(steps)].dropna(subset="loss")


def after_20_steps(of: str, rule: str = "lora", lr: str = "") -> str:
    """Of rank 256 on SmolLM2, as means over seeds: the held-out ``loss`` at a learning rate or at
    the best of those tried, its ``fall``, and the best ``rate``. ``base``: the loss before."""
    study = "paper_learning_rate"
    metrics = study_tables(study).metrics
    base = metrics.loc[metrics["step"] == 0, "eval_loss"].mean()
    own = losses("20", study).query(f"scaling == '{rule}' and rank == 256")
    mean = own.groupby("lr")["loss"].mean()
    at = float(lr) if lr else mean.idxmin()
    found = {"base": base, "loss": mean[at], "fall": base - mean[at]}
    return f"{at:g}" if of == "rate" else f"{found[of]:.2f}"


def read_losses(runs: pd.DataFrame) -> Callable[[float], float]:
    """The loss of one rank and seed as a function of the log rate.

    It is the parabola through the best rate tried and its neighbours, whose vertex is the best
    rate. Beyond these three rates, and if the best rate has one neighbour only, losses are
    interpolated without overshoot (PCHIP).
    """
    runs = runs.sort_values("lr")
    log_lr, loss = np.log(runs["lr"].to_numpy(float)), runs["loss"].to_numpy(float)
    between, best = PchipInterpolator(log_lr, loss), int(loss.argmin())
    if best in (0, len(loss) - 1):
        return lambda at: float(between(at))
    near = slice(best - 1, best + 2)
    low, _, high = log_lr[near]
    parabola = BarycentricInterpolator(log_lr[near], loss[near])
    return lambda at: float(parabola(at) if low <= at <= high else between(at))


def kept(steps: str, study: str = STUDY) -> pd.DataFrame:
    """By rule, seed and kept rank, what the other ranks lose at the best rate of the kept one.

    ``regret``: the mean over the other ranks of the loss at the kept rate less the loss at their
    own best rate, both of :func:`read_losses`, nats per token. ``share``: regret over the lowest
    loss of the lowest rank less that of the highest one.
    """
    rows = []
    of_ranks = losses(steps, study).groupby(["scaling", "rank"])
    shared = pd.concat([at_common_rates(runs) for _, runs in of_ranks])  # those of best rates
    for (rule, seed), own in shared.groupby(["scaling", "seed"]):
        best = np.log(by_seed(rates_of(rule, steps, study)).loc[seed])
        loss_of = {rank: read_losses(runs) for rank, runs in own.groupby("rank")}
        lowest = pd.Series({rank: loss_of[rank](best[rank]) for rank in best.dropna().index})
        gain = lowest.iloc[0] - lowest.iloc[-1]
        for rank in lowest.index:
            at_kept = pd.Series({other: loss_of[other](best[rank]) for other in lowest.index})
            regret = (at_kept - lowest).drop(rank).mean()
            rows.append((rule, seed, rank, regret, regret / gain))
    return pd.DataFrame(rows, columns=["rule", "seed", "kept", "regret", "share"])


def regrets(rank: float, steps: str, study: str = STUDY) -> pd.DataFrame:
    """The regret at the best rate of a rank: a row per seed, a column per rule."""
    own = kept(steps, study)
    return own[own["kept"] == rank].pivot(index="seed", columns="rule", values="regret")


def regret_gap(rule: str, steps: str, rank: str = str(TUNED)) -> str:
    """What a rule loses at the best rate of a rank less what crossover loses, nats, by seed."""
    regret = regrets(float(rank), steps)
    return mean_text(regret[rule] - regret["crossover"], 4)


def regret_test(steps: str, study: str = STUDY) -> str:
    """A row per rule, and per difference of two rules: what the other ranks lose at the best rate
    of each rank."""
    ranks, rows = sorted(kept(steps, study)["kept"].unique()), {}
    for rank in ranks:
        regret = regrets(rank, steps, study)
        rules = {_name_of(rule): regret[rule].dropna() for rule in TITLES if rule in regret}
        for one, other in combinations([rule for rule in USED if rule in regret], 2):
            name = f"{_name_of(one)} less {_name_of(other)}"
            rules[name] = (regret[one] - regret[other]).dropna()
        for name, values in rules.items():
            rows.setdefault(name, {"rule": name})[f"rate of rank {rank:g}"] = mean_text(values, 4)
    return table_of([*rows.values()])


def rules_test(steps: str, study: str = STUDY) -> str:
    """A row per rule that was trained for ``steps``: how far the best rates of the ranks lie apart,
    and what one rate costs."""
    rank = tuned_rank(steps, study)
    own = kept(steps, study)
    regret, rows = dict(iter(own[own["kept"] == rank].groupby("rule"))), []
    for rule in (rule for rule in TITLES if rule in regret):
        row = {"rule": _name_of(rule)}
        row |= {f"rank {r:g}": f"{lr:.2g}" for r, lr in best_rates(rule, steps, study).items()}
        row["largest / smallest"] = best_rate("spread", rule, steps, study)
        head = f"regret at the best rate of rank {rank}, nats"
        row[head] = mean_text(regret[rule]["regret"], 4)
        rows.append(row | {"the same, share of the ranks' gain": mean_text(regret[rule]["share"])})
    return table_of(rows)


def by_steps(study: str = STUDY) -> str:
    """A row per rule and number of steps: r_sign, and the gain of the highest rank: its loss less
    that of the lowest, each at its best rate. The study's answer has the best rates."""
    rates, rows = study_tables(study).rates, list[dict[str, str]]()
    low, high = rates["rank"].min(), rates["rank"].max()
    unit = "byte" if study == STUDY else "token"  # a token of the small model is a byte
    for rule in TITLES:
        for steps in sorted(rates.query(f"scaling == '{rule}'")["steps"].unique()):
            at = rule, str(steps), study
            row = {
                "rule": _name_of(rule),
                "steps": f"{steps:g}",
                "seeds": str(len(by_seed(rates_of(*at)))),
                "r_sign at s = 1/2": rate_law("r_sign", *at),
                f"loss of rank {high:g} less rank {low:g}, nats per {unit}": best_gap(*at),
            }
            rows.append(row)
    return table_of(rows)


def rounding() -> str:
    """A row per rank and rate that were trained in float32 and, at the same seeds, in bf16: losses
    of LoRA after 256 steps."""
    of = [losses("256", study).query("scaling == 'lora'") for study in (REAL, LONG)]
    of = [rows.set_index(["rank", "lr", "seed"])["loss"] for rows in of]
    both = pd.concat(of, axis=1, keys=["float32", "bf16"], join="inner")
    rows = []
    for (rank, lr), own in both.groupby(["rank", "lr"]):
        exact, rounded = own.mean()
        row = {"rank": f"{rank:g}", "learning rate": f"{lr:g}", "float32": f"{exact:.3f}"}
        row |= {"bf16": f"{rounded:.3f}", "bf16 less float32": minus(f"{rounded - exact:+.3f}")}
        rows.append(row | {"seeds": str(len(own))})
    return table_of(rows)


RIVALS: dict[str, tuple[Curve, list[float]]] = {
    "descents": (lambda rows, t: -t[0] * np.log(rows["gamma"] * rows["rank"]).to_numpy(), [0.5]),
    "power": (
        lambda rows, t: -np.log(rows[["gamma", "rank"]]).to_numpy() @ np.array(t),
        [0.5, 0.5],
    ),
}
"""Equal descents; and a power of gamma and of the rank, with free exponents."""


def mean_rates(rule: str, steps: str, study: str) -> pd.DataFrame:
    """The best rates of a rule or of ``all`` rules, as the laws of research.rate_fits read them."""
    rows = study_tables(study).rates.query(f"steps == {steps}").astype({"scaling": str})
    rows = rows[rows["scaling"].isin([*TITLES] if rule == "all" else [rule])]
    gammas = [setting_of(row).gamma for _, row in rows.iterrows()]
    rows = rows.assign(log_lr=np.log(rows["best_lr"]), gamma=gammas)
    # One row a rank: its seeds share the error of the grid. Any seed at an edge makes it a bound.
    rows = rows.groupby(["scaling", "rank"], as_index=False)
    return rows.agg({"log_lr": "mean", "gamma": "first", "edge": "max"}).assign(group="all")


def rate_law(of: str, rule: str = "all", steps: str = "256", study: str = STUDY) -> str:
    """A number of the law of equal outputs, fitted to the best rates of all rules and seeds.

    ``r_sign``: ``11 [8, 15]``; of one rule at s = 1/2. ``s``. ``descents``, ``power``: how much
    worse these fit, in -2 log likelihood. Empty if no rate is left to tell the scatter.
    """
    rows = mean_rates(rule, steps, study)
    start = [2.5, 0.5] if rule == "all" else [2.5]
    if (rows["edge"] == "").sum() < len(start) + 2:
        return ""
    found = fit_rates(rows, moved, start)
    if of in RIVALS:
        return f"{fit_rates(rows, *RIVALS[of]).cost - found.cost:.0f}"
    return f"{found.found[1]:.2f}" if of == "s" else r_sign_text(rows, found)


def power(of: str, over: str, where: str, *studies: str) -> str:
    """The best rate as a power of a column of ``rates``, or of the ``horizon``, in the rows that
    the query ``where`` selects. Seeds that lack a value are left out. Intervals contain the error
    of the grid, as those of :func:`~study.analysis.rates.rate_transfer`.

    ``of``: ``table``, a row per rank with its best rate at each value, its exponent and seeds;
    ``mean``, of the exponents over ranks; ``apart``, the highest rank's less the lowest's; or the
    exponent of a rank.
    """
    found = [study_tables(name) for name in studies]
    at_end = over != "horizon"
    parts = [x.rates if at_end else rates_by_horizon(x.cells, x.metrics, x.probes) for x in found]
    rates = pd.concat(parts, ignore_index=True).query(where)
    # rate_transfer fits a power of the column `rank`, so the values of `over` stand there.
    rates = rates.assign(setting="", of=rates["rank"].astype(int), rank=rates[over].astype(float))
    count = rates.groupby(["of", "seed"])["rank"].transform("nunique")
    rates = rates[count == rates["rank"].nunique()]
    lr = rates.pivot(index=["of", "seed"], columns="rank", values="best_lr")
    found = slopes(lr).unstack("of")
    grid = pd.Series({r: rate_transfer(x)["se_grid"].iloc[0] for r, x in rates.groupby("of")})
    every, (low, *_, high) = found.dropna(), found.columns
    found = found.assign(mean=every.mean(axis=1), apart=every[high] - every[low])
    apart = np.hypot(grid[low], grid[high])
    grid["mean"], grid["apart"] = np.hypot.reduce(grid) / len(grid), apart
    texts = {}
    for name, values in found.items():
        mean, end, _ = mean_interval(values.dropna())
        half = np.hypot(mean - end, NORMAL * grid[name])
        texts[str(name)] = minus(interval_text(mean, mean - half, mean + half))
    if of != "table":
        return texts[of]
    rows = []
    for rank, own in lr.groupby("of"):
        best = {f"{value:g}": f"{one:.2g}" for value, one in own.apply(geometric).items()}
        rows.append({"rank": str(rank), **best, "seeds": str(len(own))})
    rows += [{"rank": name, "seeds": str(len(every))} for name in ("mean", "highest less lowest")]
    pairs = zip(rows, texts.values(), strict=True)
    return table_of(filled([row | {"exponent": text} for row, text in pairs]))


def settings() -> str:
    """A row per weight decay, LoRA+ ratio and drawn matrix: best rate and lowest loss by rank. In
    brackets, the best rate over that of :data:`STUDY`, which has none of these."""
    plain = study_tables(STUDY).rates.query("scaling == 'lora' and steps == 1024")
    rates = pd.concat([plain, study_tables("decay_small").rates]).query("rank == [4, 64]")
    beside = plain.set_index(["rank", "seed"])[["best_lr", "best_loss"]]
    rates = rates.astype({"init": str}).join(beside, ["rank", "seed"], "inner", rsuffix="_plain")
    rows = []
    names = ["weight_decay", "loraplus_lr_ratio", "init"]
    for (decay, ratio, init), own in rates.groupby(names, sort=False):
        row = {"weight decay": f"{decay:g}", "LoRA+ ratio": f"{ratio:g}"}
        row["drawn"] = "B" if init == "init_b" else "A"
        for rank, one in own.groupby("rank"):
            best, times = map(geometric, (one["best_lr"], one["best_lr"] / one["best_lr_plain"]))
            row[f"best rate, rank {rank:g}"] = f"{best:.2g} (×{times:.2f})"
            more = (one["best_loss"] - one["best_loss_plain"]).mean()
            row[f"loss less that of the first row, rank {rank:g}"] = minus(f"{more:+.4f}")
        rows.append(row | {"seeds": str(own["seed"].nunique())})
    return table_of(filled(rows))


def factorial(of: str = "table") -> str:
    """A row per base of factorial_small: the exponent of the best rate between the two highest
    ranks. ``width``, ``depth``: the exponent over all ranks at the smallest less that at the
    largest, by seed, as the mean over the other factor. ``above``: as ``width``, of the exponent
    between the two highest ranks."""
    rates = study_tables("factorial_small").rates
    rates = rates.join(rates["model"].str.extract(r"w(?P<wide>\d+)d(?P<deep>\d+)").astype(int))
    best = rates.pivot(index=["wide", "deep", "seed"], columns="rank", values="best_lr")
    every, highest = slopes(best), slopes(best.iloc[:, -2:])
    if of != "table":
        by = ["deep" if of == "depth" else "wide", "seed"]
        means = (highest if of == "above" else every).groupby(by).mean().unstack("seed")
        return mean_text(means.iloc[0] - means.iloc[-1], 3)
    rows = []
    for (wide, deep), own in highest.groupby(["wide", "deep"]):
        row = {"width": str(wide), "blocks": str(deep)}
        row["between the two highest ranks"] = mean_text(own, 3)
        rows.append(row | {"seeds": str(len(own))})
    return table_of(rows)


RUN = ["model", "scaling", "lr", "batch_size", "rank", "steps"]
"""What tells the runs of the table r_sign apart."""


def r_parts_rows() -> pd.DataFrame:
    """r_parts of each run, step and layer on held-out rows, as ``value``. Where the parts work
    against each other, it is infinite."""
    found = read("r_sign/r_sign")
    found["kind"] = found["layer"].str.rpartition(".")[2].str.removesuffix("_proj")
    return found.assign(value=found["r_parts"].where(found["r_parts"] > 0, np.inf))


def r_parts_range(where: str) -> str:
    """``15 to 59``: the medians over layers of the runs and steps that the query ``where``
    selects."""
    medians = r_parts_rows().groupby([*RUN, "step"])["value"].median()
    found = medians.reset_index().query(where)["value"]
    return " to ".join(f"{value:.0f}" for value in sorted({found.min(), found.max()}))


def r_parts_medians(of: str) -> pd.DataFrame:
    """The median over layers of :func:`r_parts_rows`: a row per run, a column per step or kind of
    layer. ``of``: as in :func:`r_parts`."""
    found = r_parts_rows()
    is_long = found["steps"] == found.groupby("model")["steps"].transform("max")
    found = found[~is_long if of == "short" else is_long]
    if of == "kinds":
        found = found[found["step"] == found["steps"]]
    over = "kind" if of == "kinds" else "step"
    return found.groupby([*RUN[:-1], over])["value"].median().unstack(over)


def r_parts(of: str) -> str:
    """A table of :func:`r_parts_medians`: ``long``, by step in the longest runs of each model;
    ``kinds``, at their end by kind of layer; ``short``, by step in all other runs."""
    rows, name = [], "" if of == "kinds" else "step "
    for (model, rule, lr, batch, rank), values in r_parts_medians(of).iterrows():
        row = {"model": model, "rule": RULES[rule].label, "rate": f"{lr:g}"}
        row |= {"sequences": f"{batch:g}"} if of == "short" else {}
        texts = values.dropna().map("{:.0f}".format).replace("inf", "∞")
        rows.append(row | {"rank": f"{rank:g}"} | {f"{name}{x}": y for x, y in texts.items()})
    return table_of(filled(rows))


def panels_of(titles: Collection[str], stacked: bool = False) -> tuple[Figure, list[Axes]]:
    """A page with a panel for each title: at most three in a row."""
    count = len(titles)
    rows = count if stacked else -(-count // 3)
    size = (3.6, 2.14 * count) if stacked else (7.2, 0.5 + 2.2 * rows)
    page = Figure(figsize=size, layout="constrained")
    panels = list(page.subplots(rows, -(-count // rows), sharex=True, sharey=True).flat)
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title, fontsize=9)
    return page, panels


@style.paper()
def r_parts_by_step() -> Figure:
    """A panel per model: r_parts of the longest runs by step, and, in black with its interval,
    r_sign that the best rates of all rules ask for after so many steps."""
    asked = {"small": {64: STUDY, 256: STUDY, 1024: STUDY}, "smollm2": {256: REAL, 1024: LONG}}
    medians = r_parts_medians("long")
    models = ["small", "smollm2", "gemma3"]
    page, panels = panels_of([model_label(model) for model in models])
    for ax, model in zip(panels, models, strict=True):
        for (rule, rank), values in medians.loc[model].groupby(["scaling", "rank"]):
            look = style.rule_look(rule)
            line, fill = ("--", "white") if rank == medians.index.levels[4].max() else ("-", None)
            look = {"color": look.shades(0.7), "marker": look.marker, "mfc": fill, "ls": line}
            name = f"{RULES[rule].label}, rank {rank:g}"
            ax.plot(values.columns, values.iloc[0], lw=1.2, ms=3.5, label=name, **look)
        for steps, study in asked.get(model, {}).items():
            rows = mean_rates("all", str(steps), study)
            value, *ends = r_sign_ends(rows, fit_rates(rows, moved, [2.5, 0.5]))
            off = np.abs(np.subtract(ends, value))[:, None]
            look = {"fmt": "D", "color": style.INK, "label": "asked for by\nthe best rates"}
            ax.errorbar(steps * 1.15, value, off, ms=4, capsize=2.5, **look)
        ax.set(xscale="log", yscale="log", xlabel="step", ylim=(0.5, 100))
        ax.set_xticks(list(medians.columns))
        ax.set_yticks([1, 3, 10, 30, 100])
        plain_axes(ax)
    panels[0].set_ylabel("r_sign")
    handles, names = panels[0].get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    page.legend(once.values(), once, loc="outside lower center", ncols=4)
    return page


def plain_axes(ax: Axes) -> None:
    """Plain numbers at the ticks, and no minor ticks."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


@style.paper()
def hero(stacked: bool = False) -> Figure:
    """The longest runs of SmolLM2: a panel per rule, a line per rank over one axis of rates, and
    the best rates below. Diverging runs leave the panel: it ends above the loss of the lowest
    rates."""
    runs = losses("1024", LONG)
    ranks, colours = sorted(runs["rank"].unique()), matplotlib.colormaps["viridis"]
    rules = [rule for rule in TITLES if rule in set(runs["scaling"])]
    page, panels = panels_of([TITLES[rule] for rule in rules], stacked)
    for ax, rule in zip(panels, rules, strict=True):
        best = best_rates(rule, "1024", LONG)
        for index, rank in enumerate(ranks):
            colour = colours(0.85 - 0.85 * index / (len(ranks) - 1))  # yellow is faint on white
            look: dict[str, Any] = {"color": colour, "zorder": 2 + index}
            own = runs[(runs["scaling"] == rule) & (runs["rank"] == rank)]
            mean = mean_losses(at_common_rates(own))
            ax.plot(mean.index, mean, ".-", ms=4, lw=1.2, label=f"rank {rank:g}", **look)
            style.best_mark(ax, best[rank], index, colour)
        style.rate_axis(ax, sorted(runs["lr"].unique()), 3.0 if stacked else 2.0)
    means = runs.groupby(["scaling", "rank", "lr"])["loss"].mean()
    low, slow = means.min(), means.groupby(["scaling", "rank"]).first().max()
    panels[0].set_ylim(style.with_rows(low, slow + 0.4 * (slow - low), len(ranks)))
    row = (0.98, style.ROW * (len(ranks) + 1) / 2)
    at = {"xycoords": "axes fraction", "ha": "right", "va": "center", "fontsize": 8}
    panels[0].annotate("best rates", row, color=style.CONTEXT, **at)
    for ax in panels if stacked else panels[:1]:
        ax.set_ylabel("held-out loss\n(nats per token)")
    for ax in panels[-1:] if stacked else panels:
        ax.set_xlabel("learning rate")
    handles, labels = panels[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=3 if stacked else 5, fontsize=8)
    return page


@style.paper()
def best_by_steps() -> Figure:
    """A panel per rule: the best rate against the rank, a line per number of steps."""
    page, panels = panels_of(TITLES.values())
    rates = study_tables(STUDY).rates
    for ax, rule in zip(panels, TITLES, strict=True):
        for index, steps in enumerate(sorted(rates["steps"].unique())):
            own = rates.query(f"scaling == '{rule}' and steps == {steps}")
            look: dict[str, Any] = {"color": matplotlib.colormaps["viridis"](0.8 - 0.4 * index)}
            ax.plot(own["rank"], own["best_lr"], "o", ms=3, alpha=0.5, mew=0, **look)
            if len(own):
                best = best_rates(rule, str(steps), STUDY)
                ax.plot(best.index, best, "-", lw=1.4, label=f"{steps:g} steps", **look)
        ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="best learning rate")
        ax.set_xticks(sorted(rates["rank"].unique()))
        ax.set_yticks([0.0005, 0.001, 0.002, 0.004, 0.008])
        plain_axes(ax)
        ax.label_outer()
    page.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return page
