"""Numbers in place of labels: which curve and which seed each cell belongs to; strings as codes."""

import numpy as np
import pandas as pd

from study.analysis.fits import Ints
from study.analysis.grouping import curve_labels, numbered


def curve_numbers(cells: pd.DataFrame) -> Ints:
    """A number per cell, equal for cells of one curve: 0, 1, ... in order of first appearance."""
    labels = curve_labels(cells)
    return numbered(labels, labels.columns)


def seed_numbers(cells: pd.DataFrame) -> Ints:
    """A number for each pair of seed and data seed: the sample unit of every interval."""
    units = [name for name in ("seed", "data_seed") if name in cells]
    return cells.groupby(units, dropna=False).ngroup().to_numpy(np.intp)


def codes(column: "pd.Series[str]") -> tuple[Ints, list[str]]:
    """A column of strings as integers, and the strings they stand for.

    Nothing is copied if the column is categorical.
    """
    values = column.astype("category").cat
    return values.codes.to_numpy(), [str(name) for name in values.categories]
