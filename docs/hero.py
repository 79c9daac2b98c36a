"""Numbers of the README: best rates after 20 steps, and gradient norms."""

import numpy as np
import pandas as pd

from docs.blocks import study_tables
from docs.evidence import measured_in
from study.analysis.fits import mean_interval
from study.analysis.wording import interval_text
from study.report.text import minus
from study.vocabulary.quantities import MODEL_WIDE

STUDY = "paper_learning_rate"
SAME = 1.25
"""A factor of the rate that a tuner does not see."""


def best_rates(scaling: str, study: str = STUDY, steps: str = "20") -> "pd.Series[float]":
    """By rank, the geometric mean over seeds of the best rate under a rule after some steps."""
    own = study_tables(study).rates.query(f"scaling == '{scaling}' and steps == {steps}")
    return np.exp(np.log(own["best_lr"]).groupby(own["rank"]).mean())


def rate_change(scaling: str, study: str = STUDY, steps: str = "20") -> str:
    """``3.6 times lower``: how the best rate changes from the lowest to the highest rank."""
    best = best_rates(scaling, study, steps)
    factor = best.iloc[-1] / best.iloc[0]
    if 1 / SAME < factor < SAME:
        return "the same"
    return f"{factor:.1f} times higher" if factor > 1 else f"{1 / factor:.1f} times lower"


def best_gap(scaling: str, study: str = STUDY, steps: str = "20") -> str:
    """The loss of the highest rank less that of the lowest, each at the rate of its lowest mean."""
    where = f"how == 'best' and scaling == '{scaling}' and steps == {steps}"
    own = study_tables(study).losses.query(where)
    of_rank = own.pivot(index="seed", columns="rank", values="loss")
    gap = of_rank.iloc[:, -1] - of_rank.iloc[:, 0]
    return minus(interval_text(*mean_interval(gap), places=3))


def below_best(lr: str, study: str = STUDY) -> str:
    """``65``: how many times LoRA's best rate at the highest rank is as high as a rate."""
    return f"{best_rates('lora', study).iloc[-1] / float(lr):.0f}"


def norm_ratio(rank: str, step: str) -> str:
    """How many times as large rsLoRA's gradient norm is as LoRA's under AdamW, mean over seeds."""
    norms = measured_in("theorem_over_training", "adapter_grad", int(step))
    here = norms.query(f"layer == '{MODEL_WIDE}' and rank == {rank} and lr == 1e-4")
    mean = here.groupby(here["scaling"].astype(str))["norm"].mean()
    return f"{mean['rslora'] / mean['lora']:.1f}"
