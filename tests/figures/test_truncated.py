"""Losses of adapters cut to lower ranks: one line per trained rank, up to the whole run."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.figures.selection import Absent
from study.figures.truncated import truncated_losses

RANKS, SEEDS = (4, 64, 1024), (0, 1)


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    cells, rows = [], []
    for scaling in ("lora", "rslora"):
        for rank in (*RANKS, math.inf):
            for seed in SEEDS:
                cell = f"{scaling}{rank}{seed}"
                cells.append(
                    {"cell_id": cell, "scaling": scaling, "exponent": np.nan, "rank": float(rank)}
                )
                cells[-1] |= {
                    "seed": seed,
                    "data_seed": seed,
                    "status": "complete",
                    "optimizer": "sgd",
                    "lr": 0.1,
                }
                for kept in [0, *(2**k for k in range(11) if 2**k < rank), rank]:
                    loss = 3.0 - math.log2(1 + min(kept, 2**11)) / 10 + 0.01 * seed
                    rows.append({"cell_id": cell, "kept": float(kept), "loss": loss, "share": 0.5})
    return SimpleNamespace(cells=pd.DataFrame(cells), truncations=pd.DataFrame(rows))


def test_lines_are_means_over_seeds_and_end_at_the_run(study, read) -> None:
    figure = truncated_losses(study)
    [line] = [a for a in read.artists(figure, "cut lora") if a.get_gid().endswith("r=64")]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 8, 16, 32, 64])
    np.testing.assert_allclose(line.get_ydata()[0], 3.0 - 0.1 + 0.005)
    [whole] = [a for a in read.artists(figure, "whole lora") if a.get_gid().endswith("r=64")]
    assert (whole.get_xdata()[0], whole.get_ydata()[0]) == (64, line.get_ydata()[-1])
    assert "Base ($k = 0$): 3.00 to 3.01." in " ".join(read.texts(figure)).replace("\n", " ")


def test_missing_truncations_are_reported_with_the_fix(study) -> None:
    with pytest.raises(Absent, match=r"probes\.truncations=log"):
        truncated_losses(SimpleNamespace(cells=study.cells, truncations=pd.DataFrame()))
