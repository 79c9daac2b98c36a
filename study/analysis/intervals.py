"""Student's t-interval for the mean of one series, and an interval as text."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from study.vocabulary.thresholds import CONFIDENCE


def mean_interval(values: npt.ArrayLike) -> tuple[float, float, float]:
    """The mean of a sample with its 95 % t-interval: ``(mean, low, high)``.

    The bounds are NaN for a sample of one; all three are NaN for an empty sample.
    """
    sample = np.asarray(values, float)
    if sample.size == 0:
        return np.nan, np.nan, np.nan
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, np.nan, np.nan
    half_width = stats.t.ppf((1 + CONFIDENCE) / 2, sample.size - 1) * stats.sem(sample)
    return mean, mean - float(half_width), mean + float(half_width)


def interval_text(value: float, low: float, high: float, places: int = 2) -> str:
    """``-0.50 [-0.52, -0.48]``, or ``-0.50`` without an interval."""
    shown, *bounds = (rounded(number, places) for number in (value, low, high))
    return shown if pd.isna(low) or pd.isna(high) else f"{shown} [{', '.join(bounds)}]"


def rounded(value: float, places: int = 2) -> str:
    """A number with a fixed number of decimal places; never ``-0.00``."""
    return f"{round(value, places) + 0.0:.{places}f}"
