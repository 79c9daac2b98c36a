"""The best alpha at a fixed learning rate: how it grows with rank, and what the choice is worth.

The method is that of the best learning rate (:mod:`study.analysis.rates`), with the roles of alpha
and the learning rate exchanged. LoRA-alpha (arXiv 2606.12883, second hand) finds the best alpha of
LoRA to grow as sqrt(r), which makes gamma that of rsLoRA.

Under a sign-like rule a step of size lr moves the adapter output by ``lr M(r)``, and ``M`` is
proportional to alpha (:mod:`study.analysis.rate_predictions`). The motion of A changes the power of
lr in this, but not that of alpha. So the best alpha falls as ``1/M`` in either case.
"""

import pandas as pd

from study.analysis.final_losses import INSIDE
from study.analysis.grouping import numbered
from study.analysis.intervals import mean_interval
from study.analysis.rates import best_rates, rate_transfer

EXCHANGED = {"lr": "alpha", "alpha": "lr"}
OF_THE_RATE = ("predicted_low", "predicted_high", "agreement")
"""Columns of :func:`~study.analysis.rates.rate_transfer` that hold for learning rates only."""


def best_alphas(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The best alpha of every rule, learning rate, rank and seed.

    The columns are those of :func:`study.analysis.rates.best_rates`, with ``lr`` for ``alpha`` and
    ``best_alpha`` for ``best_lr``. Empty without two alphas.
    """
    found = best_rates(cells.rename(columns=EXCHANGED), metrics, probes)
    return found.rename(columns={"alpha": "lr", "best_lr": "best_alpha"})


def alpha_transfer(alphas: pd.DataFrame) -> pd.DataFrame:
    """The exponent of the best alpha with rank, one row per rule and learning rate.

    ``alphas`` is the table of :func:`best_alphas`. The columns are those of
    :func:`study.analysis.rates.rate_transfer`, without its prediction.
    """
    if alphas.empty:
        return pd.DataFrame()
    found = rate_transfer(alphas.rename(columns={"lr": "alpha", "best_alpha": "best_lr"}))
    return found.drop(columns=list(OF_THE_RATE), errors="ignore").rename(columns={"alpha": "lr"})


def alpha_gaps(alphas: pd.DataFrame) -> pd.DataFrame:
    """Is a large alpha with a small learning rate better? A row per rule and rank.

    ``gap``: the held-out loss at the best alpha of the lowest learning rate, minus that at the best
    alpha of the highest one, in nats per token; negative if the larger alpha is better. It has a
    t-interval over seeds, ``ci_low``, ``ci_high``. Only learning rates whose best alpha is inside
    the grid for every seed of the rank count. Further columns: ``lr_low``, ``lr_high``, ``rank``
    (also as ``rank_min`` and ``rank_max``), ``seeds``, and those of the rule.
    """
    rows = []
    rule = ["setting", "scaling", "exponent_p", "rank"]
    for _, here in alphas.groupby(numbered(alphas, rule)) if len(alphas) else ():
        inside = here.assign(inside=here["edge"] == INSIDE).groupby("lr")["inside"].all()
        rates = inside.index[inside]
        if len(rates) < 2:
            continue
        low, high = rates.min(), rates.max()
        by = here.pivot(index="seed", columns="lr", values="best_loss")[[low, high]].dropna()
        gap, ci_low, ci_high = mean_interval(by[low] - by[high])
        rows.append(
            here.iloc[0][[*rule, "optimizer"]].to_dict()
            | {"lr_low": low, "lr_high": high, "gap": gap, "ci_low": ci_low, "ci_high": ci_high}
            | {"seeds": len(by), "rank_min": here["rank"].iloc[0], "rank_max": here["rank"].iloc[0]}
        )
    return pd.DataFrame(rows)
