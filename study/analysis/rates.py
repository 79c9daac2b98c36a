"""Does the best learning rate transfer across ranks? Its exponent with rank, and theory's.

The prediction is in :mod:`study.analysis.rate_theory`. Learning rates come in a grid, which causes
an error that all seeds share; docs/measured.md derives its size. The best alpha at a fixed
learning rate is found in the same way, with alpha and the learning rate exchanged.

**Horizons.** At a constant rate, the first h steps of a run are a run of h steps. So every held-out
loss gives the best rate for training up to its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from study.analysis.fits import Floats, fit_lines, interval_columns, t_critical
from study.analysis.grouping import CURVE_ID, RULE, curve_columns, groups, numbered
from study.analysis.law import Setting, short_model
from study.analysis.losses import (
    HIGHEST,
    INSIDE,
    LOWEST,
    OF_A_RULE,
    at_common_rates,
    final_losses,
    mean_losses,
)
from study.analysis.rate_theory import (
    OUTPUT,
    log_outputs,
    predicted_interval,
    rate_exponent,
    slopes,
)
from study.theory import family
from study.vocabulary import scaling
from study.vocabulary.quantities import TRAIN
from study.vocabulary.statuses import BROKEN, STATUSES
from study.vocabulary.thresholds import CONFIDENCE, SEEDS_FOR_VERDICT

if TYPE_CHECKING:
    from study.store import StudyTables

SKEWED = 0.3
"""The skew above which three points do not place the minimum. The limit of a steep wall is 1/3."""
NORMAL = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
MOVED_BY_SKEW = 2.0
"""The steps by which a skew of 1 may move the best rate. Intervals then cover 93 to 99 %, if one
rank alone has a half-parabola that is 3 to 30 times as steep as its other one."""
QUANTILE = 0.75
"""The quantile of a rule's skews that is used. Intervals then cover 93 to 99 %, if one
half-parabola is 3 to 20 times as steep as the other."""
NOT_OF_A_RULE = (
    *("rank", "seed", "best_lr", "best_loss", "edge", "tried", "grid_step", "grid_sd"),
    *("moved", "curvature", "seed_sd", "seed_df", "rho", OUTPUT),
)
"""The columns of ``rates`` that vary within a rule."""


STEEP = 1.5
"""A rank is steep if its parabola has more than this times the curvature of the rule's median."""
FEWEST_RATES = 3
"""With this many rates the skew of a basin is not known."""


class Bottom(NamedTuple):
    """The learning rate of lowest loss, the lowest loss of those tried, and the rate's ``edge``.

    - ``step``: the mean of the steps in log lr to the neighbouring rates, NaN at an edge;
    - ``skew``: ``k`` of docs/measured.md; NaN if unknown, infinite if the rate is one of the grid;
    - ``curvature``: the coefficient of the parabola's square, nats per (log lr)^2; NaN without one.
    """

    lr: float
    loss: float
    edge: str
    step: float = math.nan
    skew: float = math.nan
    curvature: float = math.nan


def best_rates(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The best learning rate of every rule, rank and seed.

    Only the rates that all seeds of a rank have count. A rank with fewer than two has no rows.
    Ranks need not share a grid.

    Columns: those of the curve without ``lr``, ``setting``, ``rank``, ``seed``, and

    - ``best_lr``, ``best_loss``, ``edge``, ``grid_step``: see :class:`Bottom`;
    - ``grid_sd``: the standard deviation of the error of log ``best_lr`` that the grid makes;
    - ``moved``: by how much log ``best_lr`` may be too low (:func:`grid_moves`);
    - ``curvature``: see :class:`Bottom`;
    - ``seed_sd``, ``seed_df``: see :func:`with_scatter`;
    - ``rho``: the motion of A over its init, median over layers, at the last probed step of the
      run at the nearest rate (NaN if the second half of the run has none);
    - ``log_output``: see :func:`~study.analysis.rate_theory.log_outputs`.
    """
    ends = final_losses(cells, metrics)
    rho = _rho(probes, metrics["step"].groupby(metrics["cell_id"].astype(str)).max())
    parts = []
    for rule in groups(ends, OF_A_RULE):
        rows, found = [], []
        shared = pd.concat([at_common_rates(of_rank) for _, of_rank in rule.groupby("rank")])
        for _, own in shared.groupby(["rank", "seed"]):
            if len(own) < 2 or not np.isfinite(own["loss"]).any():
                continue
            best = bottom(own["lr"].to_numpy(float), own["loss"].to_numpy(float))
            off = (np.log(own["lr"]) - np.log(best.lr)).abs()
            nearest = off.where(np.isfinite(own["loss"])).idxmin()
            rows.append(
                {
                    **own.iloc[0].drop(["lr", "loss", "cell_id", "gamma", CURVE_ID]).to_dict(),
                    "best_lr": best.lr,
                    "best_loss": best.loss,
                    "edge": best.edge,
                    "tried": len(own),
                    "grid_step": best.step,
                    "curvature": best.curvature,
                    "rho": rho.get(str(own.loc[nearest, "cell_id"]), np.nan),
                }
            )
            found.append(best)
        if rows:
            table = pd.DataFrame(rows).assign(grid_sd=grid_errors(found), moved=grid_moves(found))
            parts.append(table.join(log_outputs(rule, probes), on="rank"))
    return with_scatter(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


def with_scatter(rates: pd.DataFrame) -> pd.DataFrame:
    """``rates`` with ``seed_sd``: the standard deviation over seeds of a log best rate, pooled over
    the ranks and rules that differ in nothing else, and ``seed_df``, its degrees of freedom.

    The rates of a rank at which a seed has its own at an edge do not count.
    """
    apart = [name for name in curve_columns(rates) if name not in (*RULE, "alpha")]
    parts = []
    for rules in groups(rates, apart):
        inside = pd.concat([_inside(rule) for rule in groups(rules, OF_A_RULE)])
        log_lr = inside["best_lr"].astype(float).map(math.log)
        of_rank = log_lr.groupby([numbered(inside, OF_A_RULE), inside["rank"]])
        squares, df = (of_rank.var() * (of_rank.size() - 1)).sum(), (of_rank.size() - 1).sum()
        sd = math.sqrt(squares / df) if df else math.nan
        parts.append(rules.assign(seed_sd=sd, seed_df=int(df)))
    return pd.concat(parts).sort_index()


def _rho(probes: pd.DataFrame, last: pd.Series[int]) -> dict[str, float]:
    """By cell the motion of A over its init, median over layers, at the last step measured, in the
    second half of the run, whose ``last`` step is by cell."""
    if "rho" not in probes:
        return {}
    of_A = (probes["site"] == "A") & (probes["batch"] == TRAIN)
    rows = probes[of_A & np.isfinite(probes["rho"])]
    rows = rows.assign(cell_id=rows["cell_id"].astype(str))
    rows = rows[rows["step"] == rows.groupby("cell_id")["step"].transform("max")]
    rows = rows[rows["step"] >= rows["cell_id"].map(last).astype(float) / 2]
    return rows.groupby("cell_id")["rho"].median().to_dict()


def bottom(lr: Floats, loss: Floats) -> Bottom:
    """The minimum of the loss over learning rates: the vertex of a parabola in log ``lr``.

    The parabola passes through the best rate tried and its two neighbours. Next to a steep rise the
    loss at its vertex is too low, so the returned loss is that of the best rate tried. A loss of
    NaN is a run that diverged. A best rate next to it is no edge, and is returned unchanged. At
    least one loss must be finite, and rates must be distinct.
    """
    order = np.argsort(lr)
    x, y = np.log(lr[order]), loss[order]
    best = int(np.nanargmin(y))
    edge = LOWEST if best == 0 else HIGHEST if best == len(x) - 1 else INSIDE
    if edge:
        return Bottom(float(np.exp(x[best])), float(y[best]), edge)

    def curvature(middle: int) -> float:
        """The second divided difference of y around ``middle``: d of ``c u + d u^2``."""
        left, here, right = y[middle - 1 : middle + 2]
        a, b = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
        return float(((left - here) / a - (right - here) / b) / (a - b))

    a, step = x[best - 1] - x[best], float(x[best + 1] - x[best - 1]) / 2
    # y = here + c u + d u^2 through its neighbours. The middle is the lowest, so d >= 0.
    d = curvature(best)
    if not d > 0:  # NaN next to a run that diverged
        return Bottom(float(np.exp(x[best])), float(y[best]), edge, step, math.inf)
    c = (y[best - 1] - y[best]) / a - d * a
    u = -c / (2 * d)
    # The third divided difference: with the lower one of the two points beyond.
    third = math.nan
    beyond = [i for i in (best - 2, best + 2) if 0 <= i < len(x) and np.isfinite(y[i])]
    if beyond:
        outer = min(beyond, key=lambda i: y[i])
        side = -1 if outer < best else 1
        third = (curvature(best + side) - d) / float(x[outer] - x[best - side])
    return Bottom(
        lr=float(np.exp(x[best] + u)),
        loss=float(y[best]),
        edge=edge,
        step=step,
        skew=abs(third) * step / d,
        curvature=d,
    )


def grid_errors(found: list[Bottom]) -> Floats:
    """The standard deviations of the grid's errors in the log best rates of one rule (see the
    module); NaN at an edge."""
    step, skew = (np.array([getattr(best, name) for best in found]) for name in ("step", "skew"))
    known = skew[np.isfinite(skew)]
    shared = float(np.quantile(known, QUANTILE)) if len(known) else math.inf
    placed = step * (shared / math.sqrt(80) + 1.2 * shared**2)
    within_half_a_step = step / math.sqrt(12)
    return np.where(np.isinf(skew) | (shared > SKEWED), within_half_a_step, placed)


def grid_moves(found: list[Bottom]) -> Floats:
    """By how much the log best rates of one rule may be too low, in all seeds alike: ``step /
    sqrt(6)`` next to a run that diverged, else :data:`MOVED_BY_SKEW` times step and skew. A skew
    that is unknown counts as the median of the others. If all are, the ranks count as equal."""
    step, skew = (np.array([getattr(best, name) for best in found]) for name in ("step", "skew"))
    usual = 0.0 if np.isnan(skew).all() else np.nanmedian(np.minimum(skew, SKEWED))
    own = np.minimum(np.where(np.isnan(skew), usual, skew), SKEWED)
    return step * np.where(np.isinf(skew), 1 / math.sqrt(6), MOVED_BY_SKEW * own)


def rate_transfer(rates: pd.DataFrame) -> pd.DataFrame:
    """The scaling exponent of the best learning rate with rank, one row per rule.

    ``rates`` is the table of :func:`best_rates`. Per seed a line is fitted through the ranks at
    which no seed has its best rate at an edge. The interval is Student's t over seeds, widened by
    the error of the grid. With one seed it only measures how straight the line over ranks is. With
    two, it rests on the scatter that is pooled over ranks and rules (:func:`with_scatter`).

    ``exponent`` is NaN for fewer than two ranks. ``df``: the degrees of freedom of the scatter.
    ``se_grid``: the grid's part of the standard error. ``steep``: whether a rank with three rates
    has a steeper basin than the others (:data:`STEEP`). Its best rate may be too low, and the
    interval does not contain this error. ``edges``: best rates at an edge. ``predicted_low``,
    ``predicted_high``: theory.
    """
    rows = []
    for rule in groups(rates, OF_A_RULE):
        rule = rule.sort_values(["seed", "rank"])
        inside = _inside(rule)
        row = rule.iloc[0].drop(list(NOT_OF_A_RULE), errors="ignore")
        fit = _line(inside)
        outputs = (inside if fit["ranks"] else rule).groupby("rank")[OUTPUT].first()
        low, high = predicted_interval(outputs, row)
        rho = rule.groupby("rank")["rho"].median()
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                **fit,
                "edges": int((rule["edge"] != INSIDE).sum()),
                "predicted_low": low,
                "predicted_high": high,
                "rho_min": rho.min(),
                "rho_max": rho.max(),
            }
        )
    return pd.DataFrame(rows)


def _inside(rule: pd.DataFrame) -> pd.DataFrame:
    """The best rates of the ranks at which no seed has its own at an edge."""
    return rule[~rule["rank"].isin(rule.loc[rule["edge"] != INSIDE, "rank"])]


def _line(inside: pd.DataFrame) -> dict[str, float | str]:
    """The fit of the log best rate against log rank."""
    if inside["rank"].nunique() < 2:
        unknown = ("exponent", "ci_low", "ci_high", "rank_min", "rank_max", "se_grid")
        nothing: dict[str, float | str] = dict.fromkeys(unknown, np.nan)
        return nothing | {"interval": "none", "seeds": 0, "ranks": 0, "df": 0, "steep": False}
    best = inside.pivot(index="seed", columns="rank", values="best_lr")
    lines = fit_lines(best.columns, np.log(best.to_numpy(float))[None, :, :, None])
    fit = {name: values[0, 0] for name, values in lines.items()}
    slope, df, seeds = float(fit["slope"]), float(fit["df"]), int(fit["seeds"])
    of_grid, of_seeds = 0.0, float(fit["se_slope"]) ** 2
    x = np.log(best.columns.to_numpy(float))
    weight = (x - x.mean()) / np.square(x - x.mean()).sum()
    if 1 < seeds < SEEDS_FOR_VERDICT:
        df = float(inside["seed_df"].iloc[0])
        of_seeds = float(inside["seed_sd"].iloc[0]) ** 2 * np.sum(weight**2 / best.count())
    if seeds > 1:  # with one seed, the scatter of the ranks contains the error of the grid
        in_steps = np.log(inside["best_lr"]) / inside["grid_step"]
        by = inside.assign(variance=inside["grid_sd"] ** 2, in_steps=in_steps).groupby("rank")
        scatter2 = by["in_steps"].var().fillna(0.0).to_numpy(float)
        shared = by["variance"].mean().to_numpy(float) * np.exp(-((2 * np.pi) ** 2) * scatter2)
        moved = by["moved"].mean().to_numpy(float)
        of_grid = float(np.sum(weight**2 * shared) + np.sum(weight * moved) ** 2)
    half = math.hypot(t_critical(df) * math.sqrt(of_seeds), NORMAL * math.sqrt(of_grid))
    interval = "none" if df == 0 else "ranks" if seeds == 1 else "seeds"
    found: dict[str, float | str] = {"exponent": slope}
    found |= {"ci_low": slope - half, "ci_high": slope + half}
    found |= {"interval": interval, "seeds": seeds, "ranks": int(fit["ranks"]), "df": int(df)}
    found |= {name: float(fit[name]) for name in ("rank_min", "rank_max")}
    return found | {"se_grid": math.sqrt(of_grid), "steep": _is_steep(inside)}


def _is_steep(inside: pd.DataFrame) -> bool:
    """Whether a rank with three rates has a steeper basin than the others."""
    by = inside.groupby("rank")
    curvature = by["curvature"].mean()
    is_steep = curvature > STEEP * curvature.median()
    return bool((is_steep & (by["tried"].max() <= FEWEST_RATES)).any())


def best_alphas(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The best alpha of every rule, learning rate, rank and seed: as :func:`best_rates`, with
    ``lr`` for ``alpha`` and ``best_alpha`` for ``best_lr``. Empty without two alphas."""
    exchanged = cells.rename(columns={"lr": "alpha", "alpha": "lr"})
    found = best_rates(exchanged, metrics, probes)
    return found.rename(columns={"alpha": "lr", "best_lr": "best_alpha"})


def alpha_transfer(alphas: pd.DataFrame) -> pd.DataFrame:
    """The exponent of the best alpha with rank, one row per rule and learning rate: as
    :func:`rate_transfer`, without its prediction."""
    found = rate_transfer(alphas.rename(columns={"lr": "alpha", "best_alpha": "best_lr"}))
    found = found.drop(columns=["predicted_low", "predicted_high"], errors="ignore")
    return found.rename(columns={"alpha": "lr"})


def alpha_gaps(alphas: pd.DataFrame) -> pd.DataFrame:
    """Is a large alpha with a small learning rate better? A row per rule and rank.

    ``gap``, in nats per token, is the difference of two held-out losses: at the best alpha of the
    lowest learning rate, minus at the best alpha of the highest one. Its t-interval is over seeds.
    Only learning rates whose best alpha is inside the grid for every seed of the rank count.
    """
    rows = []
    rule = ["setting", *RULE, "rank"]
    for here in groups(alphas, rule):
        inside = here.assign(inside=here["edge"] == INSIDE).groupby("lr")["inside"].all()
        rates = inside.index[inside]
        if len(rates) < 2:
            continue
        low, high = rates.min(), rates.max()
        by = here.pivot(index="seed", columns="lr", values="best_loss")[[low, high]].dropna()
        rows.append(
            here.iloc[0][[*rule, "optimizer"]].to_dict()
            | {"lr_low": low, "lr_high": high, **interval_columns("gap", by[low] - by[high])}
            | {"seeds": len(by), "rank_min": here["rank"].iloc[0], "rank_max": here["rank"].iloc[0]}
        )
    return pd.DataFrame(rows)


def rates_by_horizon(
    cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """:func:`best_rates` at each horizon: a column ``horizon``.

    Horizons of runs at a constant rate are the steps after the first at which every complete run of
    as many steps has a held-out loss. A run with another schedule has one horizon, its end. ``rho``
    is that of the last step measured by then. Empty if no rank has two rates.
    """
    is_constant = schedules(cells) == "constant"
    at_end = best_rates(cells[~is_constant], metrics, probes)
    parts = [at_end.assign(horizon=at_end["steps"].astype(int))] if len(at_end) else []
    evaluated = metrics.reindex(columns=["cell_id", "step", "eval_loss"]).dropna()
    evaluated = evaluated.assign(id=evaluated["cell_id"].astype(str))
    for _, same in cells[is_constant].groupby("steps", dropna=False):
        whole = set(same.loc[same["status"] == "complete", "cell_id"].astype(str))
        here = evaluated[(evaluated["step"] > 0) & evaluated["id"].isin(whole)]
        count = here.drop_duplicates(["id", "step"]).groupby("step").size()
        for step in count.index[count == len(whole)]:
            so_far = (table[table["step"] <= step] for table in (metrics, probes))
            parts.append(best_rates(until(same, step), *so_far).assign(horizon=int(step)))
    parts = [part for part in parts if "best_lr" in part]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def until(cells: pd.DataFrame, step: float) -> pd.DataFrame:
    """``cells`` as they were after ``step``: a run that broke later was complete."""
    status = cells["status"].astype(object).copy()
    for word in BROKEN:
        column = STATUSES[word].ended_at
        if column in cells:
            status[(status == word) & (cells[column].astype(float) > step)] = "complete"
    return cells.assign(status=status)


def exponents_against_rho(rates: pd.DataFrame) -> pd.DataFrame:
    """:func:`rate_transfer` of each rule and horizon, with rho.

    ``rates`` is the table of :func:`rates_by_horizon`. Further columns: ``horizon``. ``rho``: the
    geometric mean over the ranks of the fit and the seeds, at the best rate. ``rho_low``,
    ``rho_high``: its range. ``descent_slope``, ``output_slope``: m by either theory of
    :mod:`study.analysis.rate_theory`. ``at_rho_low``, ``at_rho_high``: the interval predicted
    there, from the descent to the output. NaN without rho, or without a prediction.
    """
    rows = []
    unknown = ["rho", "rho_low", "rho_high", "descent_slope", "output_slope"]
    unknown += ["at_rho_low", "at_rho_high"]
    for rule in groups(rates, ("horizon", *OF_A_RULE)):
        [row] = rate_transfer(rule.drop(columns="horizon")).to_dict("records")
        row |= {"horizon": rule["horizon"].iloc[0], **dict.fromkeys(unknown, math.nan)}
        inside = _inside(rule)
        rho = inside.loc[inside["rho"] > 0, "rho"].to_numpy(float)
        if len(rho):
            row["rho"] = float(np.exp(np.log(rho).mean()))
            row |= {"rho_low": float(rho.min()), "rho_high": float(rho.max())}
        of_theory = slopes(inside.groupby("rank")[OUTPUT].first(), row)
        if math.isfinite(of_theory[1]) and family(str(row["optimizer"])) == "sign":
            ends = [rate_exponent(m, row["rho"]) for m in of_theory]
            row["descent_slope"], row["output_slope"] = of_theory
            row |= {"at_rho_low": min(ends), "at_rho_high": max(ends)}
        rows.append({str(name): value for name, value in row.items()})
    return pd.DataFrame(rows)


STEP = 2.0
SLACK = 1.2
"""A step of up to ``STEP * SLACK`` counts as one of ``STEP``: rates are rounded."""


class Missing(NamedTuple):
    """Rates to train. ``cell_id``: a cell with all of its settings but rate and seed. ``swept``:
    overrides of ``study train -m``; ``data.seed`` follows ``seed`` unless it was fixed."""

    cell_id: str
    rank: float
    rates: list[float]
    swept: list[str]


def missing_rates(
    cells: pd.DataFrame,
    metrics: pd.DataFrame,
    within: tuple[float, float] = (0.0, math.inf),
    prior: Callable[[Setting], float] | None = None,
) -> list[Missing]:
    """The rates ``within`` limits that each rule and rank lacks. A rank with one rate lacks the one
    that the ``prior`` expects and twice that, or none without a prior.

    Rates of a rank should lie in steps of 2 around its best one, and no best rate at an edge. A
    best rate at an edge needs the next rate beyond. A wider step next to it needs a rate half or
    twice as large. The seeds of a rank share a grid, so all train what one needs.
    """
    ends = final_losses(cells, metrics)
    ends = ends.sort_values([*OF_A_RULE, "rank", "seed"])
    by_id = cells.assign(cell_id=cells["cell_id"].astype(str)).set_index("cell_id")
    found = []
    for runs in groups(ends, (*OF_A_RULE, "rank")):
        here = at_common_rates(runs)
        tried = here["lr"].unique()
        wanted: set[float] = set()
        for _, own in here.groupby("seed") if len(tried) > 1 else ():
            wanted |= _wanted(own["lr"].to_numpy(float), own["loss"].to_numpy(float))
        if len(tried) == 1 and prior is not None:
            expected = prior(setting_of(runs.iloc[0]))
            wanted = {expected, expected * STEP}
        rates: list[float] = []
        for rate in sorted(wanted):  # without those near one that was tried, or near an earlier one
            off = np.abs(np.log(rate / np.array([*tried, *rates])))
            if within[0] <= rate <= within[1] and (off > np.log(SLACK)).all():
                rates.append(float(f"{rate:.3g}"))
        if rates:
            of_rank, first = by_id.loc[list(runs["cell_id"])].sort_values("seed"), runs.iloc[0]
            swept: dict[str, Any] = {"optimizer.lr": [f"{rate:g}" for rate in rates]}
            swept["seed"] = of_rank["seed"].astype(int)
            if "data_seed" in of_rank and (of_rank["data_seed"] != of_rank["seed"]).any():
                swept["data.seed"] = of_rank["data_seed"].astype(int)
            words = [f"{key}={','.join(dict.fromkeys(map(str, x)))}" for key, x in swept.items()]
            found.append(Missing(str(first["cell_id"]), first["rank"], rates, words))
    return found


def _wanted(lr: Floats, loss: Floats) -> set[float]:
    """The rates that the runs of one rule, rank and seed need, tried or not."""
    if not np.isfinite(loss).any():
        return {float(lr.min()) / STEP}
    edge, best = bottom(lr, loss).edge, float(lr[np.nanargmin(loss)])
    if edge != INSIDE:
        return {best / STEP if edge == LOWEST else best * STEP}
    above, below = lr[lr > best].min() / best, best / lr[lr < best].max()
    steps = ((above, STEP), (below, 1 / STEP))
    return {best * factor for step, factor in steps if step > STEP * SLACK}


FEWEST = 8
"""The fewest steps of a part of a run that counts as a shorter run."""


def best_rates_of(of: StudyTables, source: str) -> pd.DataFrame:
    """The best rate of each rule and rank of a study, by the mean loss over seeds: a row with what
    the law reads, ``log_lr`` and ``edge``. Runs in bf16 count if the study has none in float32.

    At an edge of the rates tried the best rate is only bounded, by the middle of the last two. A
    run at a constant rate counts as one of a half, a quarter, ... of its steps as well.
    """
    exact, rows = of.cells["precision"].astype(str) == "float32", list[dict[str, Any]]()
    cells = of.cells[exact] if exact.any() else of.cells
    for steps in _horizons(cells, of.metrics):
        so_far, then = of.metrics, cells
        if steps is not None:
            so_far, then = so_far[so_far["step"] <= steps], until(cells, steps)
        for runs in groups(final_losses(then, so_far), (*OF_A_RULE, "rank")):
            mean, first = mean_losses(at_common_rates(runs)), runs.iloc[0]
            if len(mean) > 1 and mean.notna().any():
                run = setting_of(first, steps)
                row = {"source": source, "model": run.model, "rule": run.rule, "alpha": run.alpha}
                row |= {"optimizer": run.optimizer, "seeds": runs["seed"].nunique()}
                rows.append(row | run.facts() | placed(mean))
    return pd.DataFrame(rows)


def _horizons(cells: pd.DataFrame, metrics: pd.DataFrame) -> list[int | None]:
    """None, for the whole runs, and of runs at a constant rate the halves with a held-out loss."""
    found: list[int | None] = [None]
    if len(cells) and cells["steps"].nunique() == 1 and set(schedules(cells)) == {"constant"}:
        counts = metrics.dropna(subset="eval_loss").groupby("step").size()
        steps = int(cells["steps"].iloc[0]) // 2
        while steps >= FEWEST and counts.get(steps, 0) == counts.max():
            found.append(steps)
            steps //= 2
    return found


def schedules(cells: pd.DataFrame) -> pd.Series[str]:
    """The schedule of each cell. Studies that recorded none have the default."""
    found = cells.get("schedule", pd.Series("constant", cells.index))
    return found.astype(object).fillna("constant").astype(str)


def setting_of(first: pd.Series, steps: int | None = None) -> Setting:
    """The run of a row of ``cells``; its first ``steps``."""
    rule, p, crossover = (first[name] for name in ("scaling", "exponent_p", "crossover"))
    ratio = first.get("loraplus_lr_ratio")
    return Setting(
        rank=int(first["rank"]),
        alpha=float(first["alpha"]),
        rule=f"{p:g}" if rule == scaling.POWER else str(rule),
        optimizer=str(first["optimizer"]),
        crossover=float(crossover),
        ratio=float(ratio) if ratio and ratio > 0 else 1.0,
        steps=int(steps or first["steps"]),
        model=short_model(str(first["model"])),
        batch=int(first["batch_size"] * first["accumulation"]),
        schedule="constant" if pd.isna(first.get("schedule")) else str(first["schedule"]),
    )


def placed(losses: pd.Series[float]) -> dict[str, Any]:
    """``log_lr`` and ``edge`` of the lowest of ``losses``, by rate in ascending order."""
    lr = np.asarray(losses.index, np.float64)
    best, logs = bottom(lr, np.asarray(losses, np.float64)), np.log(lr)
    ends = {INSIDE: math.log(best.lr), LOWEST: logs[:2].mean(), HIGHEST: logs[-2:].mean()}
    return {"log_lr": float(ends[best.edge]), "edge": best.edge}
