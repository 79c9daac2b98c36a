"""Does rank help, or only the step size? Final held-out losses compared at one rate, at the best, at a matched step.

alpha/r and alpha/sqrt(r) are one family: LoRA(alpha sqrt(r)) is rsLoRA(alpha). So a difference between the rules at one
learning rate and equal rank is a difference of step sizes, and must vanish where those are matched. Three comparisons:

- ``fixed``: every rank at one learning rate, the best at the lowest rank: what tuning a small adapter would choose;
- ``best``: every rank at its own best rate (:mod:`study.analysis.rates`);
- ``matched``: every rule at rsLoRA's lazy step, ``gamma lr`` under a sign-like optimizer and ``gamma^2 lr`` under SGD,
  however it came by it: by its alpha, by its rate, or, between two runs, linear in the logarithm of the step.
"""

import numpy as np
import pandas as pd

from study.analysis.final_losses import final_losses
from study.analysis.fits import t_critical
from study.analysis.rates import OF_A_RULE, bottom
from study.vocabulary.optimizers import OPTIMIZERS, of_family

COMPARISONS = ("fixed", "best", "matched")
REFERENCE_P = 0.5
"""The rule whose step the others are matched to: rsLoRA's."""


def compared_losses(
    cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """Final held-out losses as they are compared: ``how`` (one of :data:`COMPARISONS`), the curve's columns, ``rank``,
    ``seed``, ``lr`` and ``alpha`` (in ``matched`` those of rsLoRA's run), ``loss`` (NaN: diverged), ``edge``,
    ``parameters``, ``flops`` (per trained token).
    """
    ends = final_losses(cells, metrics, probes)
    parts = []
    for _, setting in ends.groupby("setting", sort=False):
        parts += [_fixed(setting), _best(setting), _matched(setting)]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True).drop(columns="cell_id") if parts else pd.DataFrame()


def rank_effects(losses: pd.DataFrame) -> pd.DataFrame:
    """What a doubling of the rank does to the loss, one row per comparison, rule, alpha and (unless ``best``) rate:
    ``gain`` in nats per token (positive: it helps), the mean over seeds of each seed's least-squares slope, with its
    t-interval ``ci_low``, ``ci_high`` (NaN with one seed), ``seeds``, ``ranks``, ``rank_min``, ``rank_max``, ``edges``.
    """
    rows = []
    if losses.empty:
        return pd.DataFrame()
    rates = losses["lr"].where(losses["how"] != "best")
    by = ["how", *OF_A_RULE]
    for key, rule in losses.groupby(
        [*by, rates.rename("at_lr")], dropna=False, observed=True, sort=False
    ):
        whole = rule[np.isfinite(rule["loss"])]
        slopes = [_slope(seed) for _, seed in whole.groupby("seed") if seed["rank"].nunique() > 1]
        if slopes:
            mean, low, high = mean_interval(-np.array(slopes))
            rows.append(
                {
                    **dict(zip([*by, "lr"], key, strict=True)),
                    "optimizer": rule["optimizer"].iloc[0],
                    "gain": mean,
                    "ci_low": low,
                    "ci_high": high,
                    "seeds": len(slopes),
                    "ranks": whole["rank"].nunique(),
                    "rank_min": whole["rank"].min(),
                    "rank_max": whole["rank"].max(),
                    "edges": int((whole["edge"] != "").sum()),
                }
            )
    return pd.DataFrame(rows)


def rule_differences(losses: pd.DataFrame) -> pd.DataFrame:
    """How much more a rule loses than rsLoRA at equal rank, seed by seed: ``how``, ``setting``, the rule's columns,
    ``rank``, ``lr``, ``optimizer``, ``difference`` in nats per token with its t-interval over seeds, ``seeds``.
    """
    if losses.empty:
        return pd.DataFrame()
    keys = ["how", "setting", "rank", "seed"]
    own = losses["exponent_p"] == REFERENCE_P
    rate = losses["lr"].where(losses["how"] != "best", 0.0)  # each rule's best rate is its own
    pairs = losses[~own].assign(at=rate[~own]).merge(
        losses[own].assign(at=rate[own])[[*keys, "at", "loss"]], on=[*keys, "at"], suffixes=("", "_reference")
    )  # fmt: skip
    pairs = pairs.assign(difference=pairs["loss"] - pairs["loss_reference"])
    pairs = pairs[np.isfinite(pairs["difference"])]
    rows = []
    for key, group in pairs.groupby(
        ["how", *OF_A_RULE, "rank", "at"], dropna=False, observed=True, sort=False
    ):
        # Several of rsLoRA's alphas may be compared with: a seed counts once.
        mean, low, high = mean_interval(group.groupby("seed")["difference"].mean().to_numpy())
        named = dict(zip(["how", *OF_A_RULE, "rank", "lr"], key, strict=True))
        named["lr"] = named["lr"] or np.nan
        named |= {
            "optimizer": group["optimizer"].iloc[0],
            "difference": mean,
            "ci_low": low,
            "ci_high": high,
        }
        rows.append(named | {"seeds": group["seed"].nunique()})
    table = pd.DataFrame(rows)
    return (
        table.sort_values(["how", "setting", "lr", "exponent_p", "rank"], kind="stable")
        if rows
        else table
    )


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of a sample with its 95 % t-interval, NaN for a sample of one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(t_critical(len(values) - 1)) * float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def _fixed(setting: pd.DataFrame) -> pd.DataFrame:
    """All runs at the one rate that is best at the lowest rank, over rules and seeds, among those all of them have."""
    lowest = setting[setting["rank"] == setting["rank"].min()]
    runs = lowest.groupby("lr")["loss"]
    shared = runs.size() == runs.size().max()
    mean = runs.mean().where(shared & runs.apply(lambda loss: bool(np.isfinite(loss).all())))
    rate = mean.idxmin() if mean.notna().any() else setting["lr"].mode().iloc[0]
    return setting[setting["lr"] == rate].assign(how="fixed", edge="")


def _best(setting: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, basin in setting.groupby(
        [*OF_A_RULE, "rank", "seed"], dropna=False, observed=True, sort=False
    ):
        if basin["lr"].nunique() > 1 and np.isfinite(basin["loss"]).any():
            found = bottom(basin["lr"].to_numpy(float), basin["loss"].to_numpy(float))
            # The run that was made, not the parabola's bottom, which lies under it and was never run.
            row = basin.iloc[int(np.nanargmin(basin["loss"].to_numpy(float)))].to_dict()
            rows.append(row | {"how": "best", "edge": found.edge})
    return pd.DataFrame(rows)


def _matched(setting: pd.DataFrame) -> pd.DataFrame:
    """Each rule's loss at the steps that rsLoRA was run with, per rank and seed; never beyond a rule's own steps."""
    if not setting["optimizer"].isin(list(OPTIMIZERS)).all():
        return pd.DataFrame()
    power = np.where(setting["optimizer"].isin(of_family("linear")), 2, 1)
    setting = setting.assign(step=np.log(setting["lr"]) + power * np.log(setting["gamma"]))
    reference = setting[setting["exponent_p"] == REFERENCE_P]
    rows = []
    for (_, rank, seed), runs in setting.groupby(["exponent_p", "rank", "seed"], sort=False):
        runs = runs.drop_duplicates("step").sort_values("step")
        step, loss = runs["step"].to_numpy(float), runs["loss"].to_numpy(float)
        mine = reference[(reference["rank"] == rank) & (reference["seed"] == seed)]
        for aim, lr, alpha in mine[["step", "lr", "alpha"]].to_numpy(float):
            if step[0] - 1e-9 <= aim <= step[-1] + 1e-9:
                near = np.abs(step - aim)
                # NaN beside a run that diverged, unless the step itself was run.
                value = float(
                    loss[near.argmin()] if near.min() < 1e-9 else np.interp(aim, step, loss)
                )
                row = runs.iloc[int(near.argmin())].to_dict()
                rows.append(
                    row | {"how": "matched", "edge": "", "loss": value, "lr": lr, "alpha": alpha}
                )
    table = pd.DataFrame(rows)
    if len(table):  # a step that only rsLoRA itself was run with compares nothing
        table = table[
            table.groupby(["rank", "seed", "lr", "alpha"])["exponent_p"].transform("nunique") > 1
        ]
    return table.drop(columns="step", errors="ignore")


def _slope(seed: pd.DataFrame) -> float:
    """Nats per doubling of the rank, over one seed's runs."""
    x = np.log2(seed["rank"].to_numpy(float))
    return float(np.polyfit(x, seed["loss"].to_numpy(float), 1)[0])
