"""The numbers and the figure of docs/law.md: the law of the best rate, and its test."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.interpolate import Akima1DInterpolator

from research.blocks import ROOT, study_tables
from research.law import (
    COEFFICIENTS,
    DECAYING,
    KINDS,
    RANDOM,
    Held,
    best_rates,
    fit,
    predicted,
    test,
    without,
)
from research.law import law as fitted
from study.analysis import advice
from study.analysis.advice import WIDE
from study.analysis.grouping import groups
from study.analysis.law import STEPS, Setting
from study.analysis.losses import OF_A_RULE, at_common_rates, final_losses, mean_losses
from study.analysis.rates import SLACK, missing_rates, setting_of
from study.analysis.text import minus, table, table_of
from study.analysis.wording import interval_text
from study.figures import style
from study.vocabulary.scaling import named_rule, rule_words

TRIED: dict[str, Held] = {
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


def law_coefficients() -> str:
    """A row per coefficient, with its 90 % interval."""
    found, body = fitted(), []
    for name, one in COEFFICIENTS.items():
        value, half = found.law[name], WIDE * found.error[name]
        interval = f"{value:.2f} [{value - half:.2f}, {value + half:.2f}]"
        body.append([f"`{name}`", one.about, interval, one.data])
    return minus(table(["name", "what", "value", "data"], body))


def rule_change(rank: str) -> str:
    """LoRA's best rate over rsLoRA's at one alpha and rank, by the law, with its 90 % interval:
    256 steps of a cosine, and a model of unknown size."""
    lora = Setting(int(rank), 16.0, "lora", "adamw", steps=256, schedule="cosine")
    [best, *_] = advice.advise(lora, lora)
    lora = replace(lora, lr=best.rate.value)
    [moved, *_] = advice.advise(lora, replace(lora, rule="rslora"))
    assert moved.is_relative or moved.rests == "run"
    ends = np.array([moved.rate.value, moved.rate.high, moved.rate.low])
    return interval_text(*((1 if moved.is_relative else best.rate.value) / ends), 1)


def law(name: str) -> str:
    """A number of the fit, or of the rates it is fitted to."""
    found, rows = fitted(), best_rates()
    if name in found.spread:
        return f"{found.spread[name]:.2f}"
    if name.startswith("width-"):
        return f"{advice.committed()['width'][name.removeprefix('width-')]:.2g}"
    if name.startswith("distance-"):
        return f"{advice.committed()['distance'][name.removeprefix('distance-')]:.2f}"
    if name.startswith("c-at-"):
        steps = np.log(float(name.removeprefix("c-at-")) / STEPS)
        return f"{np.exp(found.law['c'] + found.law['c_steps'] * steps):.2g}"
    theirs = rows[rows["is_theirs"]]
    numbers = {
        "rates": lambda: len(rows),
        "edges": lambda: (rows["edge"] != "").sum(),
        "models": lambda: rows["model"].nunique(),
        "published": lambda: theirs["model"].nunique(),
        "sweeps": lambda: theirs["source"].nunique(),
        "error": lambda: _tested(_ranks_of_others())[ERROR],
        "holds": lambda: _tested(_ranks_of_others())["intervals hold"],
        "decaying": lambda: _tested(tested(keeps=False).query(f"kind == '{DECAYING}'"))[ERROR],
    }
    return str(numbers[name]())


def law_tried() -> str:
    """How much worse each variant fits, in -2 log likelihood."""
    costs = {name: fit(best_rates(), held).cost for name, held in TRIED.items()}
    costs["c with a random effect of the study"] = fit(best_rates(), {}, [*RANDOM]).cost
    body = [[name, f"{cost - costs['the law']:+.0f}"] for name, cost in costs.items()]
    return minus(table(["law", "worse by"], body).replace("+0", "0"))


def tested(keeps: bool) -> pd.DataFrame:
    """Every left-out point: :func:`research.law.test`."""
    return pd.concat(test(keeps=keeps).values(), ignore_index=True)


ERROR, KEEP = "median error", "keep the rate"
"""Heads of columns: of the prediction, and of the rate of the other run as it is."""


def _factor(off: "pd.Series[float]") -> str:
    return f"{np.exp(off.median()):.2f}"


def _kept(points: pd.DataFrame) -> "pd.Series[float]":
    """The errors in log rate of the rates of the other runs. A rate alone has no other run."""
    return points.loc[points["kind"] != "alone", "measured"].abs()


def _ranks_of_others() -> pd.DataFrame:
    """The left-out ratios between two ranks in sweeps of others."""
    return tested(keeps=True).query("kind == 'rank' and is_theirs")


def by_kind(points: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The points of each of :data:`KINDS`, if there are any."""
    parts = dict(iter(points.groupby("kind")))
    return ((name, parts[kind]) for kind, name in KINDS.items() if kind in parts)


def law_test(of: str = "") -> str:
    """The error and the intervals, by kind of question, for our studies and those of others; each
    study counts once. ``rank``: of ratios between ranks in sweeps of others, by sweep."""
    if of == "rank":
        parts = iter(_ranks_of_others().groupby("source"))
        return table_of([{"sweep": str(name), **_tested(own)} for name, own in parts])
    rows = [
        {"": name, "studies": f"{own['source'].nunique()} {whose}", **_tested(own)}
        for name, points in by_kind(tested(keeps=True))
        for whose, own in (
            ("of ours", points[~points["is_theirs"]]),
            ("of others", points[points["is_theirs"]]),
        )
        if len(own)
    ]
    return table_of(rows)


def _tested(points: pd.DataFrame) -> dict[str, str]:
    """The median error of each study, that of :data:`KEEP`, and the share of its intervals that
    hold: over studies."""
    by_study = points.groupby("source")
    kept = _kept(points).groupby(points["source"]).median()
    return {
        "points": str(len(points)),
        ERROR: _factor(by_study["off"].median()),
        KEEP: _factor(kept) if len(kept) else "",
        "intervals hold": f"{100 * by_study['holds'].mean().mean():.0f} %",
    }


def law_residuals() -> str:
    """What the law alone predicts, by study, of ratios of steps and of rates alone. Predicted over
    measured: the geometric mean, and the factor of a standard deviation (spread)."""
    found, rows = tested(keeps=False), []
    about = best_rates().groupby("source").agg({"model": "unique", "decay": "max"})
    found["over"] = found["value"] - found["measured"]
    for source, own in found.groupby("source"):
        models, decays = about.loc[source]
        row = {"study": str(source)}
        row["model"] = models[0] if len(models) == 1 else f"{len(models)} models"
        row["schedule"] = "decays" if decays else "constant"
        for kinds, name in ((["steps", DECAYING], "steps"), (["alone"], "rate")):
            points = own[own["kind"].isin(kinds)]
            over = points["over"]
            told = [str(len(over)), *(f"{np.exp(x):.2f}" for x in (over.mean(), over.std()))]
            heads = ["points", "predicted over measured", "spread"]
            if name == "steps":
                told += [_factor(points["off"]), _factor(_kept(points))]
                heads += [ERROR, KEEP]
            told = told if len(over) else [""] * len(heads)
            row |= {f"{name}: {of}": text for of, text in zip(heads, told, strict=True)}
        rows.append(row)
    return table_of(rows)


BLIND = (
    ("lora-optimizers", (9000,), "8a5cef74"),
    ("horizons_small", (64,), "466bd979"),
    ("horizons_small", (1024,), "466bd979"),
    ("horizons", (256,), "17d1c1ae"),
    ("crossover_small", (256,), "f25cee8d"),
    ("batches_small", (16, 64), "f25cee8d"),
    ("constant_small", (64, 128, 256, 512, 1024), "f25cee8d"),
    ("horizons_gemma3", (256,), "2f865cf3"),
    ("horizons", (64,), "e9b3c546"),
    ("horizons_long", (1024,), "2dacc98f"),
    ("lr-matters", (78, 156, 390, 781, 1562, 6171, 6250), "37005794"),
    ("no-robots", (200,), "37005794"),
    ("persona-system", (3788,), "4429bd38"),
    ("rank-threshold", (126,), "4429bd38"),
    ("muon-finetune", (1150,), "4429bd38"),
    ("lora-from-scratch", (800,), "8e732cca"),
    ("brokttv", (1565,), "8e732cca"),
    ("cera", (4687,), "8e732cca"),
    ("nhckdvrl", (64, 256, 300, 1024, 4096), "8e732cca"),
    ("four_passes_small", (4096,), "148c437d"),
    ("matryoshka-fr2de", (450,), "5e954293"),
    ("matryoshka-bad-medical", (396,), "5e954293"),
    ("matryoshka-french-1b", (450,), "5e954293"),
    ("swespot", (150,), "5e954293"),
    ("lora-optimizers-4k", (2000, 4000), "5e954293"),
)
"""Best rates that came after a fit was committed, with their steps and its commit."""


@cache
def blind_points() -> pd.DataFrame:
    """What the fits of these commits said of rates that they had not seen: :func:`law.predicted`,
    with ``about``, ``fit``, the columns of :func:`tested`, and ``over``: predicted over measured,
    as a logarithm."""
    fits = json.loads((ROOT / "results/external/blind_fits.json").read_text())
    rates, found = best_rates(), []
    for source, steps, commit in BLIND:
        own = rates[(rates["source"] == source) & rates["steps"].isin(steps)]
        points = predicted(own, fits[commit], keeps=False)
        about = f"{source}, {' to '.join(str(one) for one in sorted({steps[0], steps[-1]}))} steps"
        found.append(points.assign(about=about, fit=commit))
    points = pd.concat(found)
    over = points["value"] - points["measured"]
    return points.assign(over=over, off=over.abs(), holds=over.abs() <= points["half"])


def law_blind() -> str:
    """A row per blind test and kind of question; those of our studies are taken together."""
    points = blind_points()
    fits = points.loc[~points["is_theirs"], "fit"].nunique()
    ours = {"about": "our studies", "fit": f"{fits} fits"}
    points = points.assign(**{k: points[k].where(points["is_theirs"], v) for k, v in ours.items()})
    rows = [
        {
            "rates": about,
            "fit": commit,
            "": kind,
            "points": str(len(own)),
            ERROR: _factor(own["off"]),
            KEEP: _factor(_kept(own)) if kind != KINDS["alone"] else "",
            "predicted over measured": _factor(own["over"]),
            "intervals that hold": str(own["holds"].sum()),
        }
        for (about, commit), found in points.groupby(["about", "fit"], sort=False)
        for kind, own in by_kind(found)
    ]
    return table_of(rows)


def blind_error(source: str, kind: str, steps: str = "256") -> str:
    """``1.40``: the median error of a blind test, as a factor. ``steps``: its last number."""
    points = blind_points().query(f"kind == '{kind}' and source == '{source}'")
    return _factor(points.loc[points["about"].str.endswith(f" {steps} steps"), "off"])


FOLLOWED = (("horizons_small", 256, 10), ("paper_learning_rate", 20, 2))
"""Studies whose runs are followed, with the steps of the new runs and their number."""


def drawn(rows: pd.DataFrame, steps: int, count: int) -> Iterator[tuple[pd.Series, pd.Series]]:
    """Pairs of best rates, drawn before any was looked at: runs of so many steps, and for each of
    them any other run, which may differ in rank, rule, alpha and steps."""
    draw = np.random.default_rng(0)
    rows = rows.sort_values(["steps", "rule", "alpha", "rank"], ignore_index=True)
    for new in draw.permutation(rows.index[rows["steps"] == steps])[:count]:
        yield rows.loc[draw.choice(rows.index.drop(new))], rows.loc[new]


def followed() -> str:
    """The advice followed without training: the rate that the law without the study gives a run
    from the best rate of another, and the loss there. Losses are means over seeds, interpolated
    over the log rate. The gain of the rank is between the best losses of a rule's ranks."""
    rows = []
    for name, steps, count in FOLLOWED:
        basins, of = dict[tuple[str, float, float], Akima1DInterpolator](), study_tables(name)
        own = of.cells[of.cells["steps"] == steps]
        for runs in groups(final_losses(own, of.metrics), (*OF_A_RULE, "rank")):
            loss, run = at_common_rates(runs).groupby("lr")["loss"].mean(), setting_of(runs.iloc[0])
            basins[run.rule, run.alpha, run.rank] = Akima1DInterpolator(np.log(loss.index), loss)
        lowest = {
            key: float(basin(np.linspace(*basin.x[[0, -1]], 999)).min())
            for key, basin in basins.items()
        }
        rates = best_rates()
        for old, new in drawn(rates[rates["source"] == name], steps, count):
            value, half = advice.moved(dict(old), dict(new), old["log_lr"], without(name))
            key = new["rule"], new["alpha"], new["rank"]
            gives = float(basins[key](value)) - lowest[key]
            ranks = [loss for (*same, _), loss in lowest.items() if same == [*key[:2]]]
            gain, off = max(ranks) - min(ranks), value - new["log_lr"]
            row = {"study": name}
            for head, x in (("from", old), ("to", new)):
                rule = rule_words(*named_rule(x["rule"]))
                row[head] = f"{rule} r {x['rank']:g} α {x['alpha']:.3g}, {x['steps']:g} steps"
            row |= {"advised": f"{np.exp(value):.2g}", "best": f"{np.exp(new['log_lr']):.2g}"}
            row |= {"advised / best": f"{np.exp(off):.2f}"}
            row |= {f"{KEEP} / best": f"{np.exp(old['log_lr'] - new['log_lr']):.2f}"}
            row |= {"interval holds": "yes" if abs(off) <= half else "no"}
            row |= {"loss given away": f"{gives:.4f}", "gain of the rank": f"{gain:.4f}"}
            rows.append(row | {"share": f"{100 * gives / gain:.0f} %"})
    return table_of(rows)


def replayed(name: str) -> pd.DataFrame:
    """``study rates --search`` on a stored sweep, by the law without this study: a row per setting.
    ``grid``, ``spent``: the runs of the grid and of the search, of each seed. ``missed``: whether
    the search ends at another rate than the best of the grid."""
    of, rows = study_tables(name), []
    ends = of.metrics.dropna(subset="eval_loss")
    for own in groups(final_losses(of.cells, ends), (*OF_A_RULE, "rank")):
        runs = at_common_rates(own)
        loss, run = mean_losses(runs), setting_of(runs.iloc[0])
        cells = of.cells[of.cells["cell_id"].isin(runs["cell_id"])]
        start = advice.alone(run.facts(), run.model, without(name))[0]
        nearest = int(np.abs(np.log(loss.index) - start).argmin())
        tried, new = set[float](), {*loss.index[min(nearest, len(loss) - 2) :][:2]}
        while new:
            tried |= new
            done = cells[cells["lr"].isin(tried)]
            wanted = [lr for one in missing_rates(done, ends) for lr in one.rates]
            new = {lr for lr in loss.index for at in wanted if 1 / SLACK < lr / at < SLACK} - tried
        found = {"steps": run.steps, "grid": len(loss), "spent": len(tried)}
        rows.append(found | {"missed": loss.idxmin() not in tried})
    return pd.DataFrame(rows)


def law_replay() -> str:
    """What searches of stored sweeps spend: a row per study and number of steps."""
    rows = [
        {
            "study, steps": f"{name}, {steps}",
            "settings": str(len(own)),
            "runs of the grid": f"{own['grid'].mean():.1f}",
            "of the search": f"{own['spent'].mean():.1f}, at most {own['spent'].max():.0f}",
            "of the grid's steps": f"{100 * own['spent'].sum() / own['grid'].sum():.0f} %",
            "best rates missed": str(own["missed"].sum()),
        }
        for name in ("horizons_small", "longer_training", "paper_learning_rate")
        for steps, own in replayed(name).groupby("steps")
    ]
    return table_of(rows)


COLOURS = {"published models": "#d9730d", "our studies": "#2b6fc2"}
PANELS = {
    "ratio between two ranks": ["rank"],
    "rules, alphas, steps, batches": ["rule or alpha", "steps", DECAYING, "batch"],
    "a rate by itself": ["alone"],
}
"""The kinds of points in each panel of the figure."""


@style.paper()
def left_out() -> Figure:
    """Predicted against measured for every left-out point."""
    found = tested(keeps=True)
    page = style.figure(1, 3, ratio=1.0, above=0.4)
    panels = page.subplots(1, 3)
    looks = {name: {"color": one, "marker": "o", "ls": "none"} for name, one in COLOURS.items()}
    for ax, (title, kinds) in zip(panels, PANELS.items(), strict=True):
        own = found[found["kind"].isin(kinds)]
        is_theirs = own["is_theirs"]
        parts = ((own[is_theirs], 3), (own[~is_theirs], 2))  # those of others lie above
        for (points, place), look in zip(parts, looks.values(), strict=True):
            x, y = np.exp(points["value"]), np.exp(points["measured"])
            ax.plot(x, y, ms=2.5, mfc="none", mew=0.6, zorder=place, **look)
        both = np.exp(np.r_[own["value"], own["measured"]])
        ends = np.array([both.min() / 1.3, both.max() * 1.3])
        for times, lw in ((1, 0.9), (1.5, 0.5), (1 / 1.5, 0.5)):
            ax.plot(ends, ends * times, color=style.INK, lw=lw, zorder=1)
        ax.set(xscale="log", yscale="log", xlabel="predicted", xlim=ends, ylim=ends, title=title)
    panels[0].set_ylabel("measured")
    style.legend(page, looks, 2)
    return style.finish(page, "Lines: equal, and within a factor of 1.5.")
