"""Does rank help, or only the step size? Final losses at one rate, the best rate, a matched step.

alpha/r and alpha/sqrt(r) are one family: LoRA(alpha sqrt(r)) is rsLoRA(alpha). So a difference
between the rules at the same learning rate and rank is a difference of step sizes, and must vanish
at matched steps. Three comparisons:

- ``fixed``: every rank at one learning rate, the best at the lowest rank, as tuning a small adapter
  would choose it;
- ``best``: every rank at its own best rate, in the mean over seeds
  (:func:`study.analysis.final_losses.best_tried`);
- ``matched``: every rule at the lazy step of rsLoRA: ``gamma lr`` under a sign-like optimizer,
  ``gamma^2 lr`` under a linear one. The step comes from the rule's alpha, from its rate, or from
  interpolation between two runs, linear in the log of the step.
"""

import numpy as np
import pandas as pd

from study.analysis.final_losses import best_tried, common_rates, final_losses, fixed_rate
from study.analysis.grouping import numbered
from study.analysis.intervals import mean_interval
from study.analysis.rates import OF_A_RULE
from study.vocabulary.optimizers import OPTIMIZERS, of_family

COMPARISONS = ("fixed", "best", "matched")
REFERENCE_P = 0.5
"""The rule whose steps the others are matched to: rsLoRA's."""


def compared_losses(
    cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """Final held-out losses in the three comparisons.

    Columns: ``how`` (one of :data:`COMPARISONS`), those of the curve, ``rank``, ``seed``, ``lr``
    and ``alpha`` (in ``matched`` those of the rsLoRA run), ``loss`` (NaN if the run diverged),
    ``edge``, ``parameters``, ``flops`` (per trained token).
    """
    ends = final_losses(cells, metrics, probes)
    parts = []
    for _, setting in ends.groupby("setting", sort=False):
        parts += [_fixed(setting), _best(setting), _matched(setting)]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True).drop(columns="cell_id") if parts else pd.DataFrame()


def rank_effects(losses: pd.DataFrame) -> pd.DataFrame:
    """The effect of doubling the rank on the loss, a row per comparison, rule, alpha and rate.

    ``gain``, in nats per token and positive if rank helps, is the mean over seeds of each seed's
    least-squares slope, with its t-interval ``ci_low``, ``ci_high`` (NaN with one seed). Further
    columns: ``lr`` (NaN for ``best``), ``optimizer``, ``seeds``, ``ranks``, ``rank_min``,
    ``rank_max``, ``edges``.
    """
    if losses.empty:
        return pd.DataFrame()
    by = ["how", *OF_A_RULE, "lr"]
    losses = _rate_if_shared(losses)
    rows = []
    for _, rule in losses.groupby(numbered(losses, by)):
        whole = rule[np.isfinite(rule["loss"])]
        slopes = [_slope(seed) for _, seed in whole.groupby("seed") if seed["rank"].nunique() > 1]
        if slopes:
            gain, low, high = mean_interval(-np.array(slopes))
            rows.append(
                {
                    **rule.iloc[0][[*by, "optimizer"]].to_dict(),
                    "gain": gain,
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
    """The excess loss of each rule over rsLoRA at equal rank, seed by seed.

    Columns: ``how``, ``setting``, those of the rule, ``rank``, ``lr`` (NaN for ``best``),
    ``optimizer``, ``difference`` in nats per token with its t-interval over seeds ``ci_low``,
    ``ci_high``, and ``seeds``.
    """
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
    for _, group in pairs.groupby(numbered(pairs, by)):
        # A rule may be compared with several alphas of rsLoRA: a seed counts once.
        difference, low, high = mean_interval(group.groupby("seed")["difference"].mean())
        rows.append(
            {
                **group.iloc[0][[*by, "optimizer"]].to_dict(),
                "difference": difference,
                "ci_low": low,
                "ci_high": high,
                "seeds": group["seed"].nunique(),
            }
        )
    order = ["how", "setting", "lr", "exponent_p", "rank"]
    return pd.DataFrame(rows).sort_values(order, kind="stable") if rows else pd.DataFrame()


def _rate_if_shared(losses: pd.DataFrame) -> pd.DataFrame:
    """``losses`` with ``lr`` NaN in the comparison ``best``, where it differs by rank and rule."""
    return losses.assign(lr=losses["lr"].where(losses["how"] != "best"))


def _fixed(setting: pd.DataFrame) -> pd.DataFrame:
    """All runs at one rate: the best at the lowest rank, in the mean over rules and seeds."""
    return setting[setting["lr"] == fixed_rate(setting)].assign(how="fixed", edge="")


def _best(setting: pd.DataFrame) -> pd.DataFrame:
    """The runs of each rule and rank at the rate that is best in the mean over seeds.

    The best of each seed would be lower by chance. Only rates that all ranks and seeds of the rule
    were run at count.
    """
    parts = []
    for _, rule in setting.groupby(numbered(setting, OF_A_RULE)):
        rates = common_rates(rule)
        if len(rates) > 1:
            for _, runs in rule.groupby("rank"):
                best = best_tried(runs, rates)
                parts.append(runs[runs["lr"] == best.lr].assign(how="best", edge=best.edge))
    return pd.concat(parts) if parts else pd.DataFrame()


def _matched(setting: pd.DataFrame) -> pd.DataFrame:
    """The loss of each rule at the steps of the rsLoRA runs, per rank and seed.

    Losses are interpolated, never extrapolated.
    """
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
                off = np.abs(step - aim)
                # NaN beside a run that diverged, except at a step that was run.
                was_run = off.min() < 1e-9
                value = float(loss[off.argmin()] if was_run else np.interp(aim, step, loss))
                row = runs.iloc[int(off.argmin())].to_dict()
                row |= {"how": "matched", "edge": "", "loss": value, "lr": lr, "alpha": alpha}
                rows.append(row)
    table = pd.DataFrame(rows)
    if len(table):  # omit steps that only rsLoRA was run with
        rules = table.groupby(["rank", "seed", "lr", "alpha"])["exponent_p"]
        table = table[rules.transform("nunique") > 1]
    return table.drop(columns="step", errors="ignore")


def _slope(seed: pd.DataFrame) -> float:
    """Nats per doubling of the rank, over the runs of one seed."""
    x = np.log2(seed["rank"].to_numpy(float))
    return float(np.polyfit(x, seed["loss"].to_numpy(float), 1)[0])
