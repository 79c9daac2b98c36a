"""The block ``coverage`` of FINDINGS.md: how often the interval of a single layer holds theory."""

import numpy as np
import pandas as pd

from docs.blocks import minus, study_tables
from study.report.text import table
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import MODEL_WIDE, POOLINGS, TRAIN

STUDIES = ("stable_exponent", "optimizer_history")
FIRST = {
    ("adapter_grad", "norm"): ("gradient norm", 0),
    ("adapter_update", "descent"): ("descent", 0),
    ("adapter_out", "rms"): ("adapter output", 1),
    ("delta_w", "norm"): ("γBA, Frobenius norm", 1),
}
"""By site and statistic: its name, and the first step at which it is not zero."""


def coverage() -> str:
    """A row per study and optimizer, a column per quantity at the first step it can be measured.

    A cell of the table is the share of layers whose 95 % interval, over seeds, holds the predicted
    slope of that layer, and the number of layers.
    """
    heads = ["study", "optimizer", *(f"{name}, step {step}" for name, step in FIRST.values())]
    body = []
    for study in STUDIES:
        for optimizer, rows in held(study).groupby("optimizer", sort=False, observed=True):
            shares = [_share(rows, *which, step) for which, (_, step) in FIRST.items()]
            body.append([study, label(str(optimizer)), *shares])
    return minus(table(heads, body))


def held(study: str) -> pd.DataFrame:
    """The fits of single layers that have a prediction. ``held``: whether the interval holds it.

    A statistic that is the same for every seed, as the norm of a sign, has no interval.
    """
    fits = study_tables(study).exponents
    single = ~fits["layer"].astype(str).isin([MODEL_WIDE, *POOLINGS])
    is_random = fits["ci_high"] > fits["ci_low"]
    rows = fits[single & is_random & (fits["batch"] == TRAIN) & np.isfinite(fits["predicted"])]
    inside = (rows["ci_low"] <= rows["predicted"]) & (rows["predicted"] <= rows["ci_high"])
    return rows.assign(held=inside)


def _share(rows: pd.DataFrame, site: str, stat: str, step: int) -> str:
    here = rows[(rows["site"] == site) & (rows["stat"] == stat) & (rows["step"] == step)]
    return f"{100 * here['held'].mean():.0f} % of {len(here)}" if len(here) else ""
