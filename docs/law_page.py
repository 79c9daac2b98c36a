"""The numbers and the figure of docs/law.md: the law of the best rate, and its test."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs import law
from docs.blocks import Block, study_tables
from docs.blocks import table as read
from study.analysis.advice import WIDE
from study.analysis.losses import final_losses
from study.figures import style
from study.report.text import minus, table

MEANINGS = {
    "base": "the level at a billion weights, 256 steps of 16 sequences, a constant rate",
    "steps": "the power of the steps",
    "size": "the power of the size of the model",
    "batch": "the power of the batch",
    "decay": "a schedule that decays",
    "spectral": "Muon instead of Adam",
    "c": "log c at 256 steps",
    "c_steps": "the power of the steps in c",
    "rho": "log(k ρ / η) at 256 steps, a billion weights",
    "rho_size": "the power of the size in ρ / η",
    "rho_steps": "the power of the steps in ρ / η",
}
DATA = {
    "batch": "no study varies it",
    "decay": "between studies",
    "spectral": "one study of 8 steps",
    "size": "between models",
}
TRIED: dict[str, law.Held] = {
    "the law": {},
    "c the same at all steps": {"c_steps": 0.0},
    "equal descents, c = 0": {"c": -20.0, "c_steps": 0.0},
    "A hardly moves, s = 1": {"rho": -20.0, "rho_size": 0.0, "rho_steps": 0.0},
    "A moves far, s = 1/2": {"rho": 40.0, "rho_size": 0.0, "rho_steps": 0.0},
    "no dependence on the size": {"size": 0.0},
    "no dependence on the schedule": {"decay": 0.0},
}
KINDS = ("rank", "rule or alpha", "steps", "alone")
NAMES = ("between two ranks", "between two rules or alphas", "between two numbers of steps")
NAMES = (*NAMES, "a rate, without one of its study")


def coefficients() -> str:
    """A row per coefficient, with its 90 % interval."""
    found, body = law.law(), []
    for name, meaning in MEANINGS.items():
        value, half = found.law[name], WIDE * found.error[name]
        interval = f"{value:.2f} [{value - half:.2f}, {value + half:.2f}]"
        body.append([f"`{name}`", meaning, interval, DATA.get(name, "within and between studies")])
    return minus(table(["name", "what", "value", "data"], body))


def fact(name: str) -> str:
    """A number of the fit, or of the rates it is fitted to."""
    found, rows = law.law(), law.best_rates()
    numbers = {
        "rates": len(rows),
        "edges": int((rows["edge"] != "").sum()),
        "studies": rows["source"].nunique() - 2,
        "models": rows["model"].nunique(),
        "published": rows.loc[rows["unit"].str.contains("/"), "model"].nunique(),
    }
    if name in numbers:
        return str(numbers[name])
    if name in ("error", "holds"):
        own = tested().query("kind == 'rank'")
        return factor(own["off"]) if name == "error" else f"{100 * own['holds'].mean():.0f} %"
    if name.startswith("c-at-"):
        steps = np.log(float(name.removeprefix("c-at-")) / law.STEPS)
        return f"{np.exp(found.law['c'] + found.law['c_steps'] * steps):.2g}"
    return f"{found.spread[name]:.2f}"


def tried() -> str:
    """How much worse each variant fits, in -2 log likelihood."""
    best, body = None, []
    for name, held in TRIED.items():
        cost = law.fit(law.best_rates(), held).cost
        best = cost if best is None else best
        body.append([name, f"{cost - best:+.0f}"])
    found = law.fit(law.best_rates(), {}, [*law.RANDOM]).cost
    body.append(["c with a random effect of the study", f"{found - best:+.0f}"])
    return minus(table(["law", "worse by"], body).replace("+0", "0"))


def tested() -> pd.DataFrame:
    return pd.concat(law.test().values(), ignore_index=True)


def factor(off: "pd.Series[float]") -> str:
    return f"{np.exp(off.median()):.2f}"


def row(name: str, found: pd.DataFrame) -> list[str]:
    units = found.groupby("unit")["off"].median()
    each = [factor(found["off"]), factor(units), f"{100 * found['holds'].mean():.0f} %"]
    return [name, str(len(found)), *each]


def tables_of_test(of: str = "") -> str:
    """By kind of question, or by study for ratios between ranks: the error and the intervals."""
    found = tested()
    heads = ["", "points", "median error", "median over studies and models", "intervals hold"]
    if of:
        own = found[found["kind"] == "rank"]
        return table(["study", *heads[1:]], [row(n, rows) for n, rows in own.groupby("source")])
    kinds = zip(KINDS, NAMES, strict=True)
    return table(heads, [row(name, found[found["kind"] == kind]) for kind, name in kinds])


def old() -> str:
    """The same for the points that the old command answered, with its numbers beside them."""
    found = tested().merge(read("advice/old_command"), on=["kind", "key"], suffixes=("", "_old"))
    heads = ["", "points", "median error", "old", "intervals hold", "old"]
    body = []
    for kind, name in zip(KINDS, NAMES, strict=True):
        own = found[found["kind"] == kind]
        shares = [f"{100 * own[holds].mean():.0f} %" for holds in ("holds", "holds_old")]
        each = [factor(own["off"]), factor(own["off_old"])]
        body.append([name, str(len(own)), *each, *shares])
    return table(heads, body)


def replay(name: str, steps: str) -> str:
    """What a search that starts at the law would have spent on a stored sweep: three rates around
    the one that the law predicts without this study, and more while the best is at an edge. A run
    that is behind the best by twice the spread of the seeds after a quarter of its steps is
    stopped. Losses are means over seeds; rates are those of the sweep."""
    tables, found = study_tables(name), law.test()["alone"]
    predicted = found[found["unit"] == name].set_index("key")["value"]
    ends = final_losses(tables.cells, tables.metrics)
    early = tables.metrics[tables.metrics["step"].between(int(steps) * 3 // 16, int(steps) // 4)]
    quarter = early.groupby(early["cell_id"].astype(str))["loss"].mean()
    ends = ends[ends["steps"] == int(steps)].assign(early=lambda rows: rows["cell_id"].map(quarter))
    runs = grid = spent = missed = settings = 0
    for (rule, alpha, rank), own in ends.groupby(["scaling", "alpha", "rank"], observed=True):
        model = ends["model"].iloc[0]
        own_rate = predicted.get(f"{name} {model} {rule} {alpha:g} {rank:g} {steps} adamw")
        if own_rate is None:
            continue
        last, then = (own.pivot(index="lr", columns="seed", values=v) for v in ("loss", "early"))
        mean, rates = last.mean(axis=1).to_numpy(), np.log(last.index.to_numpy(float))
        best, tried = int(np.abs(rates - own_rate).argmin()), set[int]()
        while not (near := {*range(max(0, best - 1), min(best + 2, len(rates)))}) <= tried:
            tried |= near
            best = min(tried, key=mean.__getitem__)
        gaps = then.mean(axis=1).to_numpy() - min(then.mean(axis=1).to_numpy()[[*tried]])
        spread = (then - then.mean(axis=0)).std(axis=1).mean()
        stopped = [i for i in tried if gaps[i] > 2 * spread]
        runs, grid, settings = runs + len(tried), grid + len(rates), settings + 1
        spent += len(tried) - 0.75 * len(stopped)
        missed += int(mean.argmin()) not in tried or int(mean.argmin()) in stopped
    return (
        f"{settings} settings of {steps} steps: {runs} of {grid} runs, and with the stop "
        f"{100 * spent / grid:.0f} % of the grid's steps; the best rate was missed in {missed}"
    )


COLOURS = {"published models": "#d9730d", "our studies": "#2b6fc2"}


@style.paper()
def left_out() -> Figure:
    """Predicted against measured for every left-out point."""
    found = tested()
    page = style.figure(1, 3, ratio=1.0, above=0.4)
    panels = page.subplots(1, 3)
    titles = ("ratio between two ranks", "rules, alphas or steps", "a rate by itself")
    for ax, title in zip(panels, titles, strict=True):
        kinds = {titles[0]: ["rank"], titles[2]: ["alone"]}.get(title, [*KINDS[1:3]])
        draw(ax, found[found["kind"].isin(kinds)])
        ax.set_title(title)
    panels[0].set_ylabel("measured")
    looks = {
        name: {"color": colour, "marker": "o", "ls": "none"} for name, colour in COLOURS.items()
    }
    style.legend(page, looks, 2)
    return style.finish(page, "Lines: equal, and within a factor of 1.5.")


def draw(ax: Axes, found: pd.DataFrame) -> None:
    is_theirs = found["unit"].str.contains("/")
    for (name, colour), own in zip(
        COLOURS.items(), (found[is_theirs], found[~is_theirs]), strict=True
    ):
        look = {"color": colour, "ms": 2.5, "mfc": "none", "mew": 0.6, "ls": "none", "zorder": 2}
        look["zorder"] = 3 if name == "published models" else 2
        ax.plot(np.exp(own["value"]), np.exp(own["measured"]), "o", gid=name, **look)
    both = np.exp(np.r_[found["value"], found["measured"]])
    ends = np.array([both.min() / 1.3, both.max() * 1.3])
    for times, width in ((1, 0.9), (1.5, 0.5), (1 / 1.5, 0.5)):
        ax.plot(ends, ends * times, color=style.INK, lw=width, zorder=1)
    ax.set(xscale="log", yscale="log", xlabel="predicted", xlim=ends, ylim=ends)


BLOCKS: dict[str, Block] = {
    "law-coefficients": coefficients,
    "law": fact,
    "law-tried": tried,
    "law-test": tables_of_test,
    "law-old": old,
    "law-replay": replay,
}
