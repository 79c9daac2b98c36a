"""The numbers and the figure of docs/law.md: the law of the best rate, and its test."""

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from docs import law
from docs.blocks import ROOT, Block, study_tables
from docs.blocks import table as read
from study.analysis import advice
from study.analysis.advice import WIDE
from study.analysis.grouping import groups
from study.analysis.losses import OF_A_RULE, common_rates, final_losses
from study.analysis.rates import SLACK, missing_rates, setting_of
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
    "batch": "between studies, and within one",
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
    "no dependence on the batch": {"batch": 0.0},
    "proportional to the batch": {"batch": 1.0},
}
KINDS = (*law.KINDS, "alone")
NAMES = ("between two ranks", "between two rules or alphas", "between two numbers of steps")
NAMES = (*NAMES, "between two batches", "a rate, without one of its study")


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
    if name == "unseen":  # the median error if only the spread of the levels mattered
        sds = [found.spread[one] for one in ("model", "source", "scatter")]
        return f"{np.exp(norm.ppf(0.75) * math.hypot(*sds)):.2f}"
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


def residuals() -> str:
    """Predicted over measured, by study: the geometric mean, and the factor of a standard
    deviation, of ratios of steps and of rates alone."""
    found, body = tested(), []
    about = law.best_rates().groupby("source").agg({"model": "unique", "decay": "max"})
    found["over"] = found["value"] - found["measured"]
    for source, own in found.groupby("source"):
        models, decays = about.loc[source]
        cells = [source, models[0] if len(models) == 1 else f"{len(models)} models"]
        cells.append("decays" if decays else "constant")
        for kind in ("steps", "alone"):
            over = np.exp(own.loc[own["kind"] == kind, "over"].agg(["mean", "std"]))
            told = [str(int((own["kind"] == kind).sum())), *(f"{one:.2f}" for one in over)]
            cells += told if told[0] != "0" else [""] * 3
        body.append(cells)
    of = ["points", "predicted over measured", "spread"]
    return table(
        ["study", "model", "schedule", *(f"{n}: {x}" for n in ("steps", "rate") for x in of)], body
    )


def old() -> str:
    """The same for the points that the old command answered, with its numbers beside them."""
    found = tested().merge(read("advice/old_command"), on=["kind", "key"], suffixes=("", "_old"))
    heads = ["", "points", "median error", "old", "intervals hold", "old"]
    body = []
    for kind, name in zip(KINDS, NAMES, strict=True):
        own = found[found["kind"] == kind]
        if own.empty:
            continue
        shares = [f"{100 * own[holds].mean():.0f} %" for holds in ("holds", "holds_old")]
        each = [factor(own["off"]), factor(own["off_old"])]
        body.append([name, str(len(own)), *each, *shares])
    return table(heads, body)


BLIND = (
    ("lora-optimizers", (9000,), "76445d13"),
    ("horizons_small", (64,), "466bd979"),
    ("horizons_small", (1024,), "466bd979"),
    ("horizons", (256,), "17d1c1ae"),
    ("crossover_small", (256,), "f25cee8d"),
    ("batches_small", (16, 64), "f25cee8d"),
    ("constant_small", (64, 128, 256, 512, 1024), "f25cee8d"),
)
"""Best rates that came after a fit was committed, with their steps and its commit."""


@cache
def blind_points() -> pd.DataFrame:
    """What the fits of these commits said of rates that they had not seen: :func:`law.predicted`,
    with ``source``, ``about``, ``fit`` and ``off``, the log of predicted over measured."""
    fits = json.loads((ROOT / "results/external/blind_fits.json").read_text())
    rates, found = law.best_rates(), []
    for source, steps, commit in BLIND:
        own = rates[(rates["source"] == source) & rates["steps"].isin(steps)]
        points = pd.concat(law.predicted(each, fits[commit]) for _, each in own.groupby("unit"))
        about = f"{source}, {' to '.join(str(one) for one in sorted({steps[0], steps[-1]}))} steps"
        found.append(points.assign(source=source, about=about, fit=commit))
    points = pd.concat(found)
    return points.assign(off=points["value"] - points["measured"])


def blind() -> str:
    """A row per blind test and kind of question."""
    found, body = blind_points(), []
    for (about, commit), own in found.groupby(["about", "fit"], sort=False):
        for kind, name in zip(KINDS, NAMES, strict=True):
            rows = own[own["kind"] == kind]
            if len(rows):
                holds = (rows["off"].abs() <= rows["half"]).sum()
                over = f"{np.exp(rows['off'].median()):.2f}"
                row = [about, commit, name, str(len(rows)), factor(rows["off"].abs())]
                body.append([*row, over, str(holds)])
    heads = ["rates", "fit", "", "points", "median error", "predicted over measured"]
    return table([*heads, "intervals that hold"], body)


def blind_error(source: str, kind: str) -> str:
    """``1.40``: the median error of the blind test of a study, as a factor."""
    return factor(blind_points().query(f"source == '{source}' and kind == '{kind}'")["off"].abs())


STOPS = {"no stop": math.inf, "stop": 0.0, "milder stop": 2.0}
"""The stops after a quarter of the steps, by the highest rate over the leader's that they spare."""


def searched(name: str) -> pd.DataFrame:
    """``study rates --search`` on a stored sweep, by the law without this study: a row per setting
    and stop. ``spent``: the runs, of each seed. ``lost``: how far the best rate found is above the
    best of the grid. A run stops if its training loss is behind the leader's by more than the
    standard deviation of the difference over seeds."""
    of, rows = study_tables(name), list[dict[str, Any]]()
    steps = of.metrics["cell_id"].map(of.cells.set_index("cell_id")["steps"]).astype(float)
    is_then = of.metrics["step"].gt(steps * 3 / 16) & of.metrics["step"].le(steps / 4)
    early = of.metrics[is_then].groupby("cell_id", observed=True)["loss"].mean()
    ends = of.metrics.dropna(subset="eval_loss")
    for runs in groups(final_losses(of.cells, ends), (*OF_A_RULE, "rank")):
        grid, run = common_rates(runs), setting_of(runs.iloc[0])
        runs = runs[runs["lr"].isin(grid)].assign(early=runs["cell_id"].map(early))
        last, then = (runs.pivot(index="lr", columns="seed", values=v) for v in ("loss", "early"))
        loss = last.mean(axis=1, skipna=False)
        cells = of.cells[of.cells["cell_id"].isin(runs["cell_id"])]
        start = advice.alone(run.facts(), run.model, law.without(name))[0]
        nearest = int(np.abs(np.log(grid) - start).argmin())
        for stop, spared in STOPS.items():
            new = {*grid[min(nearest, len(grid) - 2) :][:2]}
            tried, stopped = set[float](), set[float]()
            while new:
                tried |= new
                leader = then.loc[sorted(tried - stopped)].mean(axis=1).idxmin()
                for lr in new - {leader}:
                    behind = then.loc[lr] - then.loc[leader]
                    is_spared = leader < lr <= spared * leader * SLACK or math.isinf(spared)
                    if behind.mean() > behind.std() and not is_spared:
                        stopped.add(lr)
                status = cells["status"].astype(object).mask(cells["lr"].isin(stopped), "stuck")
                done = cells.assign(status=status)[cells["lr"].isin(tried)]
                wanted = [lr for one in missing_rates(done, ends) for lr in one.rates]
                new = {lr for lr in grid for at in wanted if 1 / SLACK < lr / at < SLACK} - tried
            lost = loss[sorted(tried - stopped)].min() - loss.min()
            found = {"steps": run.steps, "rule": run.rule, "stop": stop, "grid": len(grid)}
            found |= {"spent": len(tried) - 0.75 * len(stopped), "lost": lost, "best": loss.min()}
            rows.append(found)
    return pd.DataFrame(rows)


def replay() -> str:
    """What searches of stored sweeps spend and lose: a row per study and number of steps."""
    body = []
    for name in ("horizons_small", "longer_training", "paper_learning_rate"):
        found = searched(name)
        best = found.groupby(["steps", "rule"])["best"]
        found["share"] = found["lost"] / (best.transform("max") - best.transform("min"))
        for steps, own in found.groupby("steps"):
            usual = own[own["stop"] == "no stop"]
            row = [f"{name}, {steps}", str(len(usual)), f"{usual['grid'].mean():.1f}"]
            row += [f"{usual['spent'].mean():.1f}, at most {usual['spent'].max():.0f}"]
            body.append([*row, *(_spent(own[own["stop"] == stop]) for stop in STOPS)])
    heads = ["study, steps", "settings", "runs of the grid", "of the search", "of the grid's steps"]
    return table([*heads, *(f"with the {stop}" for stop in [*STOPS][1:])], body)


def _spent(own: pd.DataFrame) -> str:
    text = f"{100 * own['spent'].sum() / own['grid'].sum():.0f} %"
    if not (missed := int((own["lost"] > 0).sum())):
        return text
    worst = own.loc[own["lost"].idxmax()]
    return f"{text}; {missed} missed, by up to {worst['lost']:.3f} ({100 * worst['share']:.0f} %)"


COLOURS = {"published models": "#d9730d", "our studies": "#2b6fc2"}


@style.paper()
def left_out() -> Figure:
    """Predicted against measured for every left-out point."""
    found = tested()
    page = style.figure(1, 3, ratio=1.0, above=0.4)
    panels = page.subplots(1, 3)
    titles = ("ratio between two ranks", "rules, alphas, steps, batches", "a rate by itself")
    for ax, title in zip(panels, titles, strict=True):
        kinds = {titles[0]: ["rank"], titles[2]: ["alone"]}.get(title, [*KINDS[1:4]])
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
    "law-blind": blind,
    "blind-error": blind_error,
    "law-residuals": residuals,
    "law-replay": replay,
}
