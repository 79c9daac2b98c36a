"""Final held-out losses and scores: does rank help, or only the step size?

A run that diverged or got stuck has a loss of NaN: it bounds the learning rates that work.
Unfinished cells have no row. docs/measured.md has the three comparisons ``fixed``, ``best`` and
``matched``, and the question that truncations answer. At step 0 an adapter adds nothing under any
init, so perplexity and exact match of step 0 are the base model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from study.analysis.fits import Ints, interval_columns, mean_interval
from study.analysis.grouping import (
    CURVE_ID,
    RULE,
    curve_columns,
    curve_labels,
    groups,
    numbered,
    seed_numbers,
)
from study.vocabulary.optimizers import OPTIMIZERS, of_family
from study.vocabulary.quantities import HELDOUT, MODEL_WIDE, TRAIN
from study.vocabulary.scaling import FULL
from study.vocabulary.statuses import BROKEN, DONE

if TYPE_CHECKING:
    from study.config.expectations import Expectation

NOT_A_SETTING = (*RULE, "lr", "alpha")
"""Columns compared within a setting: the rule, and what determines the size of a step."""

COMPARED = ("optimizer", *RULE[1:], "alpha", "lr", "rank")
"""Columns that are equal in two cells whose losses are subtracted."""

OF_A_RULE = ("setting", *RULE, "alpha")
"""The columns that identify a rule within its setting."""

INSIDE, LOWEST, HIGHEST = "", "lowest", "highest"
"""Values of ``edge``: whether the best of the tried rates is the lowest or the highest. If it is,
the true best rate may lie outside."""


def final_losses(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per finished cell of finite rank:

    - ``setting``: a number; cells of one setting differ in rule, rank, seed, learning rate and
      alpha only;
    - the columns of the curve, ``rank``, ``seed``, ``gamma``;
    - ``loss``: the last held-out loss after the first step, in nats per token.
    """
    cells, seeds = _finished(cells)
    loss = end_losses(cells, metrics)
    table = _facts(cells, seeds).assign(gamma=cells["gamma"].astype(float), loss=loss)
    return table[loss.notna() | cells["status"].isin(BROKEN)].reset_index(drop=True)


def end_losses(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.Series[float]:
    """By row of ``cells`` the last held-out loss after the first step, if it is finite; NaN if the
    run broke."""
    ends = cells["cell_id"].astype(str).map(_ends(metrics, "eval_loss")["last"]).astype(float)
    return ends.where(np.isfinite(ends) & ~cells["status"].isin(BROKEN))


def full_loss(cells: pd.DataFrame, metrics: pd.DataFrame, like: str) -> float:
    """The held-out loss of full fine-tuning at its best rate tried, a mean over seeds, in nats per
    token: of the runs that differ from cell ``like`` in rule, alpha, rate, rank and seed only. NaN
    if there are none."""
    labels = curve_labels(cells)
    same = [name for name in curve_columns(labels) if name not in NOT_A_SETTING]
    setting = numbered(labels, same)
    own = setting[(cells["cell_id"].astype(str) == like).to_numpy()][0]
    full = cells[(setting == own) & (cells["scaling"].astype(str) == FULL).to_numpy()]
    losses = end_losses(full, metrics)
    return float(losses.groupby(full["lr"]).mean().min())


def _finished(cells: pd.DataFrame) -> tuple[pd.DataFrame, Ints]:
    """The cells of finite rank that no sweep trains again, and the numbers of their seeds among all
    cells."""
    kept = (cells["status"].isin(DONE) & np.isfinite(cells["rank"].astype(float))).to_numpy()
    return cells[kept].reset_index(drop=True), seed_numbers(cells)[kept]


def _facts(cells: pd.DataFrame, seeds: Ints) -> pd.DataFrame:
    """The columns of the curve and its id, ``cell_id``, ``setting``, ``rank`` and ``seed``."""
    labels = curve_labels(cells)
    return labels.assign(
        cell_id=cells["cell_id"].astype(str),
        setting=numbered(labels, [n for n in curve_columns(labels) if n not in NOT_A_SETTING]),
        rank=cells["rank"].astype(float),
        seed=seeds,
    )


def _ends(metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    """By cell the ``first`` value of a metric, at step 0, and the ``last``, at a later step."""
    measured = metrics.reindex(columns=["cell_id", "step", name]).dropna().sort_values("step")
    measured["cell_id"] = measured["cell_id"].astype(str)
    first = measured[measured["step"] == 0].set_index("cell_id")[name]
    last = measured[measured["step"] > 0].groupby("cell_id")[name].last()
    return pd.DataFrame({"first": first, "last": last}, dtype=float)


def base_losses(metrics: pd.DataFrame) -> pd.Series[float]:
    """By cell, the held-out loss of the base model, at step 0."""
    return _ends(metrics, "eval_loss")["first"]


def at_common_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The ``runs`` at the learning rates that every finite rank and every seed was run at.

    ``runs`` are those of one rule, or of one of its ranks, with ``rank``, ``seed`` and ``lr``. A
    run that diverged counts.
    """
    places = runs.groupby(["rank", "seed"]).ngroup().where(np.isfinite(runs["rank"].astype(float)))
    return runs[places.groupby(runs["lr"]).transform("nunique") == places.nunique()]


def mean_losses(runs: pd.DataFrame) -> pd.Series[float]:
    """By learning rate, in ascending order, the mean loss; NaN if a run diverged."""
    by_rate = runs.groupby("lr")["loss"]
    return by_rate.mean().where(by_rate.count() == by_rate.size())


def at_best_rates(
    runs: pd.DataFrame, value: str = "loss", by: Sequence[str] = ("rank",)
) -> pd.DataFrame:
    """The ``runs`` at the learning rate of the lowest mean ``value``, of the rates with the most
    seeds, for each combination of the columns ``by``; ``edge``: of all rates there. A rate at which
    a value is missing is not best."""
    rates = runs.groupby([*by], observed=True)["lr"]
    edges = [runs["lr"] == rates.transform("min"), runs["lr"] == rates.transform("max")]
    of_rate = runs.groupby([*by, "lr"], observed=True)[value]
    mean = of_rate.agg(lambda each: each.mean(skipna=False))
    seeds = of_rate.size()[mean.notna()]
    mean = mean[seeds.index][seeds == seeds.groupby([*by], observed=True).transform("max")]
    best = mean.groupby([*by], observed=True).idxmin()
    runs = runs.assign(edge=np.select(edges, [LOWEST, HIGHEST], INSIDE))
    return runs[pd.MultiIndex.from_frame(runs[[*by, "lr"]]).isin(best)]


def fixed_rate(runs: pd.DataFrame) -> float:
    """The best rate at the lowest rank, by the mean over rules and seeds, of those run without
    divergence; else the most common."""
    lowest = runs[runs["rank"] == runs["rank"].min()]
    count = lowest["lr"].value_counts()
    mean = mean_losses(lowest).where(count == count.max())
    best: Any = mean.idxmin() if mean.notna().any() else runs["lr"].mode().iloc[0]
    return float(best)


def fans(probes: pd.DataFrame) -> pd.Series[float]:
    """By cell, the sum of D + O over its layers; empty if the sizes were not recorded."""
    if "d_in" not in probes or probes["d_in"].isna().all():
        return pd.Series(dtype=float)
    layers = probes.loc[probes["layer"] != MODEL_WIDE, ["cell_id", "layer", "d_in", "d_out"]]
    layers = layers.drop_duplicates(["cell_id", "layer"])
    of_cell = (layers["d_in"] + layers["d_out"]).groupby(layers["cell_id"].astype(str))
    return of_cell.sum(min_count=1)


def loss_gaps(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The gap between the highest and the lowest finite rank, a row per curve and evaluated step.

    ``gap`` is in nats per token, negative if the higher rank learned more, with its t-interval over
    seeds. Only finished cells count, and only seeds that were evaluated at both ranks. A run that
    diverged before the step has no loss there.
    """
    losses = _losses(cells, metrics, "eval_loss")
    if losses.empty:
        return losses
    facts = _facts(*_finished(cells)).astype({CURVE_ID: object})
    ranks = facts.groupby(CURVE_ID)["rank"]
    at = [losses["rank"] == losses[CURVE_ID].map(rank) for rank in (ranks.max(), ranks.min())]
    return _subtracted(losses[at[0] & ~at[1]], losses[at[1]], [CURVE_ID])


def loss_differences(
    cells: pd.DataFrame, metrics: pd.DataFrame, asked: Expectation
) -> pd.DataFrame:
    """The loss of ``asked.of`` minus that of ``asked.against``, as :func:`loss_gaps`: per curve,
    rank, step."""
    losses = _losses(cells, metrics, {TRAIN: "loss", HELDOUT: "eval_loss"}[asked.batch])
    of, against = asked.of or {}, asked.against or {}
    if not {*of, *against} <= {*losses}:
        return pd.DataFrame()
    left, right = (
        losses[np.logical_and.reduce([losses[n].astype(object) == v for n, v in where.items()])]
        for where in (of, against)
    )
    return _subtracted(left, right, [name for name in COMPARED if name not in of])


def _losses(cells: pd.DataFrame, metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    """The columns of :func:`_facts`, with a row per step at which the metric ``name`` is finite."""
    cells, seeds = _finished(cells)
    if cells.empty or name not in metrics:
        return pd.DataFrame()
    losses = metrics[["cell_id", "step", name]].rename(columns={name: "value"})
    losses = losses[np.isfinite(losses["value"])].astype({"cell_id": str})
    return losses.merge(_facts(cells, seeds), on="cell_id")


def _subtracted(left: pd.DataFrame, right: pd.DataFrame, pair: list[str]) -> pd.DataFrame:
    """``left`` minus ``right``, paired by seed, step and the columns of ``pair``."""
    right = right[[*pair, "step", "seed", "value"]].assign(rank_min=right["rank"])
    both = left.merge(right, on=[*pair, "step", "seed"], suffixes=("", "_of_right"))
    both["gap"], both["rank_max"] = both["value"] - both["value_of_right"], both["rank"]
    rows = [
        here.iloc[0].to_dict() | {**interval_columns("gap", here["gap"]), "seeds": len(here)}
        for _, here in both.groupby([CURVE_ID, "rank", "step"], observed=True)
    ]
    return pd.DataFrame(rows)


REFERENCE_P = 0.5
"""The rule whose steps the others are matched to: rsLoRA's."""


def compared_losses(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Final held-out losses in the comparisons ``fixed``, ``best`` or ``matched``; NaN if diverged.
    In ``matched``, ``lr`` and ``alpha`` are rsLoRA's."""
    ends = final_losses(cells, metrics)
    parts = []
    for _, setting in ends.groupby("setting", sort=False):
        fixed = setting[setting["lr"] == fixed_rate(setting)].assign(how="fixed", edge="")
        parts += [fixed, _best(setting), _matched(setting)]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True).drop(columns="cell_id") if parts else pd.DataFrame()


def rank_effects(losses: pd.DataFrame) -> pd.DataFrame:
    """The effect of doubling the rank: ``gain``, in nats per token, the mean over seeds of each
    seed's slope, with its t-interval."""
    by = ["how", *OF_A_RULE, "lr"]
    rows = []
    for rule in groups(_rate_if_shared(losses), by):
        whole = rule[np.isfinite(rule["loss"])]
        slopes = [
            -np.polyfit(np.log2(seed["rank"].to_numpy(float)), seed["loss"].to_numpy(float), 1)[0]
            for _, seed in whole.groupby("seed")
            if seed["rank"].nunique() > 1
        ]
        if slopes:
            rows.append(
                rule.iloc[0][[CURVE_ID, *by, "optimizer"]].to_dict()
                | interval_columns("gain", np.array(slopes))
                | {
                    "seeds": len(slopes),
                    "ranks": whole["rank"].nunique(),
                    "rank_min": whole["rank"].min(),
                    "rank_max": whole["rank"].max(),
                    "edges": int((whole["edge"] != "").sum()),
                }
            )
    return pd.DataFrame(rows)


def rule_differences(losses: pd.DataFrame) -> pd.DataFrame:
    """The excess loss of each rule over rsLoRA at equal rank, seed by seed: ``difference`` in nats
    per token with its t-interval over seeds. ``lr`` is NaN for ``best``."""
    if losses.empty:
        return pd.DataFrame()
    losses = _rate_if_shared(losses)
    own = losses["exponent_p"] == REFERENCE_P
    keys = ["how", "setting", "rank", "seed", "lr"]
    reference = losses.loc[own, [*keys, "loss"]]
    pairs = losses[~own].merge(reference, on=keys, suffixes=("", "_reference"))
    pairs = pairs.assign(difference=pairs["loss"] - pairs["loss_reference"])
    pairs = pairs[np.isfinite(pairs["difference"])]
    by = ["how", *OF_A_RULE, "rank", "lr"]
    rows = []
    for group in groups(pairs, by):
        # A rule may be compared with several alphas of rsLoRA: a seed counts once.
        of_seed = group.groupby("seed")["difference"].mean()
        named = group.iloc[0][[*by, "optimizer"]].to_dict()
        rows.append(named | interval_columns("difference", of_seed) | {"seeds": len(of_seed)})
    order = ["how", "setting", "lr", *RULE[1:], "rank"]
    return pd.DataFrame(rows).sort_values(order, kind="stable") if rows else pd.DataFrame()


def _rate_if_shared(losses: pd.DataFrame) -> pd.DataFrame:
    """``losses`` with ``lr`` NaN in the comparison ``best``, where it differs by rank and rule."""
    return losses.assign(lr=losses["lr"].where(losses["how"] != "best")) if len(losses) else losses


def _best(setting: pd.DataFrame) -> pd.DataFrame:
    """The comparison ``best``: each rank of a rule at the best of its rates."""
    ranks = map(at_common_rates, groups(setting, [*OF_A_RULE, "rank"]))
    parts = [at_best_rates(rank) for rank in ranks if rank["lr"].nunique() > 1]
    return pd.concat(parts).assign(how="best") if parts else pd.DataFrame()


def _matched(setting: pd.DataFrame) -> pd.DataFrame:
    if not setting["optimizer"].isin(list(OPTIMIZERS)).all():
        return pd.DataFrame()
    power = np.where(setting["optimizer"].isin(of_family("linear")), 2, 1)
    setting = setting.assign(step=np.log(setting["lr"]) + power * np.log(setting["gamma"]))
    reference = setting[setting["exponent_p"] == REFERENCE_P]
    rows = []
    for runs in groups(setting, [*RULE[1:], "rank", "seed"]):
        rank, seed = runs[["rank", "seed"]].iloc[0]
        runs = runs.drop_duplicates("step").sort_values("step")
        step, loss = runs["step"].to_numpy(float), runs["loss"].to_numpy(float)
        mine = reference[(reference["rank"] == rank) & (reference["seed"] == seed)]
        for aim, lr, alpha in mine[["step", "lr", "alpha"]].to_numpy(float):
            if step[0] - 1e-9 <= aim <= step[-1] + 1e-9:
                off = np.abs(step - aim)
                # NaN next to a run that diverged, except at a step that was run.
                was_run = off.min() < 1e-9
                value = float(loss[off.argmin()] if was_run else np.interp(aim, step, loss))
                row = runs.iloc[int(off.argmin())].to_dict()
                row |= {"how": "matched", "edge": "", "loss": value, "lr": lr, "alpha": alpha}
                rows.append(row)
    table = pd.DataFrame(rows)
    if len(table):  # omit steps that only rsLoRA was run with
        others = table["exponent_p"] != REFERENCE_P
        of_step = [table[name] for name in ("rank", "seed", "lr", "alpha")]
        table = table[others.groupby(of_step).transform("any")]
    return table.drop(columns="step", errors="ignore")


def task_scores(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per curve and rank with complete cells, with the id of its curve and ``cell_ids``.

    ``perplexity`` (exp of the mean loss per target token) and ``exact_match`` have ``base_*``, the
    mean over seeds after training, and its t-interval; NaN if not measured. If several learning
    rates were tried, a rank has the row of its best one. ``rates`` counts those of all ranks and
    seeds.
    """
    done = cells[cells["status"].isin(DONE)].reset_index(drop=True)
    if done.empty:
        return pd.DataFrame()
    complete = done["status"] == "complete"
    labels = curve_labels(done).assign(rank=done["rank"].to_numpy(float))
    ids = done["cell_id"].astype(str)
    ends = {name: _ends(metrics, name).reindex(ids) for name in ("eval_loss", "exact_match")}
    losses = ends["eval_loss"]["last"].reset_index(drop=True).where(complete)
    rates = _rates(labels.assign(seed=seed_numbers(done), loss=losses))
    shown = labels[complete & (rates > 0)]
    rows = []
    for group in groups(shown, [CURVE_ID, "rank"]):
        row = {str(name): value for name, value in group.iloc[0].items()}
        row |= {"seeds": len(group), "rates": rates[group.index[0]]}
        row["cell_ids"] = tuple(ids[group.index])
        for name, metric in (("perplexity", "eval_loss"), ("exact_match", "exact_match")):
            own = ends[metric].iloc[group.index]
            scores = np.array([own["first"].mean(), *mean_interval(own["last"])])
            keys = (f"base_{name}", name, f"{name}_low", f"{name}_high")
            row |= dict(zip(keys, np.exp(scores) if metric == "eval_loss" else scores, strict=True))
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.dropna(subset=["perplexity"]).reset_index(drop=True) if rows else table


def shares_of_full(scores: pd.DataFrame) -> pd.Series[float]:
    """By row of :func:`task_scores`, the decrease of the loss over that of full fine-tuning.

    Full fine-tuning is at its best rate tried, in the row's setting; NaN if it was not run there.
    """
    gains = scores["base_perplexity"].map(math.log) - scores["perplexity"].map(math.log)
    names = [name for name in curve_columns(scores) if name not in NOT_A_SETTING]
    setting = pd.Series(numbered(scores, names), scores.index)
    of_full = gains[scores["scaling"].astype(str) == FULL]
    return gains / setting.map(of_full.groupby(setting).max())


def _rates(runs: pd.DataFrame) -> pd.Series[int]:
    """By run, the number of rates that it is the best of; 0 if it is at another rate."""
    found = pd.Series(0, runs.index)
    for rule in groups(runs, [name for name in curve_columns(runs) if name != "lr"]):
        if rule.groupby(["rank", "seed"])["lr"].nunique().max() == 1:
            found[rule.index] = 1
            continue
        for shared in map(at_common_rates, groups(rule, ["rank"])):
            found[at_best_rates(shared).index] = shared["lr"].nunique()
    return found


KEPT = 0.95
"""A cut adapter is good enough if it keeps this share of training's loss reduction."""


def truncated_losses(cells: pd.DataFrame, truncations: pd.DataFrame) -> pd.DataFrame:
    """One row per complete cell and rank ``kept``: the held-out ``loss``, and the ``share`` of the
    squared norm of delta_w, mean over layers."""
    if truncations.empty or cells.empty:
        return pd.DataFrame()
    facts = _facts(cells, seed_numbers(cells))[(cells["status"] == "complete").to_numpy()]
    rows = truncations.assign(cell_id=truncations["cell_id"].astype(str))
    return facts.merge(rows, on="cell_id").drop(columns="cell_id")


def truncation_effects(losses: pd.DataFrame) -> pd.DataFrame:
    """The effect of cutting each trained rank, one row per curve and rank of ``losses``.

    ``losses`` is the table of :func:`truncated_losses`. Columns with those of the curve:

    - ``loss``, ``gained``: of the whole adapter, and how far it is below that of the base model;
    - ``needed``: the lowest rank kept, of those tried, that keeps :data:`KEPT` of ``gained`` in the
      mean over seeds; NaN if nothing was gained;
    - ``lowest``: the lowest trained rank of the curve. ``cut``: the loss cut to that rank;
    - ``beyond``: ``cut`` minus the loss of the run trained at that rank, seed by seed, with its
      t-interval. Positive: the run of low rank found the better delta_w of that rank.
    """
    rows = []
    for _, runs in losses.groupby(CURVE_ID, sort=False, observed=True) if len(losses) else ():
        lowest = runs["rank"].min()
        at_lowest = runs[(runs["rank"] == lowest) & (runs["kept"] == lowest)]
        for rank, of_rank in runs.groupby("rank"):
            loss_K = of_rank.groupby("kept")["loss"].mean()
            whole, base = float(loss_K[rank]), float(loss_K.get(0.0, np.nan))
            enough = loss_K.index[(base > whole) & (base - loss_K >= KEPT * (base - whole))]
            cut = of_rank[of_rank["kept"] == lowest].set_index("seed")["loss"]
            beyond = (cut - at_lowest.set_index("seed")["loss"]).dropna()
            labels = of_rank.iloc[0].drop(["kept", "loss", "share", "seed"]).to_dict()
            rows.append(
                {
                    **{str(name): value for name, value in labels.items()},
                    "loss": whole,
                    "gained": base - whole,
                    "needed": enough[0] if len(enough) else np.nan,
                    "lowest": lowest,
                    "cut": float(cut.mean()),
                    **interval_columns("beyond", beyond if rank > lowest else []),
                    "seeds": of_rank["seed"].nunique(),
                }
            )
    return pd.DataFrame(rows)
