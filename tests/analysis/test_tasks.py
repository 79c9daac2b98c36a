"""Held-out scores per rank and rule, and the report's section on them, from known tables."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from study.analysis import task_scores
from study.report.sections import task_section
from study.store import StudyTables

BASE, T_975_DF1 = (3.0, 0.25), 12.706204736


def tables(lrs: tuple[float, ...] = (1e-3,), asked: bool = True) -> StudyTables:
    """Two rules, two ranks, two seeds.

    The last loss is 2 + rank / 100 + seed / 10, and 1 higher at the lower learning rate.
    """
    cells, metrics = [], []
    for n, (rule, rank, seed, lr) in enumerate(
        itertools.product(("lora", "rslora"), (4.0, 8.0), (0, 1), lrs)
    ):
        same = {
            "model": "m",
            "data": "d",
            "optimizer": "adamw",
            "exponent": math.nan,
            "alpha": 16.0,
            "init": "kaiming",
        }
        cells.append(
            same
            | {
                "cell_id": f"c{n}",
                "scaling": rule,
                "rank": rank,
                "seed": seed,
                "lr": lr,
                "status": "complete",
            }
        )
        last = 2 + rank / 100 + seed / 10 + (lr < 1e-3)
        for step, loss, match in (
            (0, *BASE),
            (1, math.nan, math.nan),
            (2, last, 0.5 + 0.25 * seed),
        ):
            match = match if asked else math.nan
            metrics.append(
                {"cell_id": f"c{n}", "step": step, "eval_loss": loss, "exact_match": match}
            )
    return StudyTables(pd.DataFrame(cells), pd.DataFrame(metrics), pd.DataFrame(), pd.DataFrame())


def test_means_and_intervals_over_seeds() -> None:
    study = tables()
    scores = task_scores(study.cells, study.metrics)
    assert len(scores) == 4
    row = scores[(scores["scaling"] == "rslora") & (scores["rank"] == 8)].iloc[0]
    assert row["seeds"] == 2
    assert row["base_perplexity"] == pytest.approx(math.exp(3.0))
    assert row["perplexity"] == pytest.approx(math.exp(2.08 + 0.05))
    half = T_975_DF1 * np.std([0.0, 0.1], ddof=1) / math.sqrt(2)
    assert row["perplexity_high"] == pytest.approx(math.exp(2.13 + half))
    assert row["perplexity_low"] == pytest.approx(math.exp(2.13 - half))
    assert row["base_exact_match"] == 0.25
    assert row["exact_match"] == pytest.approx(0.625)


def test_one_seed_has_no_interval_and_a_running_cell_no_row() -> None:
    study = tables()
    cells = study.cells[study.cells["seed"] == 0].copy()
    cells.loc[cells["rank"] == 4, "status"] = "running"
    scores = task_scores(cells, study.metrics)
    assert set(scores["rank"]) == {8.0}
    assert scores[["perplexity_low", "exact_match_high"]].isna().all(axis=None)
    assert task_scores(cells.assign(status="diverged"), study.metrics).empty


def test_the_best_of_several_rates_stands_for_a_rank() -> None:
    study = tables(lrs=(1e-4, 1e-3))
    scores = task_scores(study.cells, study.metrics)
    assert len(scores) == 4
    assert set(scores["lr"]) == {1e-3}
    assert set(scores["rates"]) == {2}
    assert task_section(study)["several_rates"]
