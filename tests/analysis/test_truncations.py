"""Trained adapters cut to a lower rank, with known losses."""

import math

import pandas as pd
import pytest

from study.analysis import truncated_losses, truncation_effects

BASE = {
    "study": "s",
    "model": "m",
    "data": "d",
    "optimizer": "adamw",
    "lr": 1e-3,
    "alpha": 16.0,
    "init": "kaiming",
}
BASE |= {"targets": "all-linear", "scaling": "rslora", "status": "complete"}


def study(ranks=(4, 64), seeds=(0, 1, 2), status="complete") -> tuple[pd.DataFrame, pd.DataFrame]:
    """The base has loss 3. The run of rank 4 ends at 2.0, that of rank 64 at 1.0.

    Nine tenths of the gain of rank 64 are in 8 directions.
    """
    cells, rows = [], []
    for rank in ranks:
        for seed in seeds:
            cell = f"{rank}-{seed}"
            fate = {"status": status} if rank > 4 else {}
            cells.append(
                {
                    **BASE,
                    **fate,
                    "cell_id": cell,
                    "rank": rank,
                    "seed": seed,
                    "data_seed": seed,
                    "gamma": 1.0,
                }
            )
            loss = (
                {0: 3.0, 1: 2.5, 4: 2.0}
                if rank == 4
                else {0: 3.0, 4: 1.7, 8: 1.2, 16: 1.05, 64: 1.0}
            )
            for kept, value in loss.items():
                shift = 0.1 * seed if kept and rank > 4 else 0.0
                rows.append(
                    {"cell_id": cell, "kept": float(kept), "loss": value + shift, "share": 1.0}
                )
    return pd.DataFrame(cells), pd.DataFrame(rows)


def test_gain_needed_rank_and_the_run_of_the_lowest_rank() -> None:
    effects = truncation_effects(truncated_losses(*study())).set_index("rank")
    low, high = effects.loc[4], effects.loc[64]
    assert low["gained"] == pytest.approx(1.0)
    assert low["needed"] == 4
    assert math.isnan(low["beyond"]), "a run is not compared with itself"
    assert high["gained"] == pytest.approx(1.9)  # the seeds' mean is 0.1 up
    assert high["needed"] == 16
    assert (high["lowest"], high["cut"], high["seeds"]) == (4, pytest.approx(1.8), 3)
    assert high["beyond"] == pytest.approx(-0.2)
    t, s = 4.302653, 0.1  # of 2 degrees of freedom; the seeds are 0.1 apart
    assert high["ci_low"] == pytest.approx(-0.2 - t * s / math.sqrt(3), rel=1e-5)
