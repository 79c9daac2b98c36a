"""``study bench sharded`` on the tiny base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.sharded import resident, summary
from study.errors import StudyError


def test_each_process_is_measured_beside_the_plan(
    study_cli: Callable[..., Any], tmp_path: Path
) -> None:
    size = ["--model=tiny", "--rank=4096", "--targets=all-linear", "--tokens=16"]
    ran = study_cli("bench", "sharded", *size, f"--to={tmp_path}")
    assert ran.code == 0, ran.err
    rows = pd.read_parquet(tmp_path / "sharded.parquet")
    assert list(rows["process"]) == [0, 1]
    assert rows["planned"].nunique() == 1
    # Half of the factors and of their gradients, and what else training holds.
    assert rows["gib"].between(0.5 * rows["planned"], 3 * rows["planned"]).all()
    assert study_cli("bench", "sharded", "--read", f"--to={tmp_path}").out == ran.out


def test_the_summary_compares_each_process_with_the_plan() -> None:
    about = {"model": "tiny", "targets": "attention", "rank": 8, "optimizer": "sgd", "tokens": 16}
    about |= {"device": "a machine", "torch": "2", "planned": 1.5}
    rows = pd.DataFrame([about | {"process": n, "gib": gib} for n, gib in enumerate((1.5, 2.0))])
    lines = summary(rows).splitlines()
    assert lines[1] == "planned for each process: 1.50 GiB"
    assert lines[2:] == [
        "measured in process 0: 1.50 GiB (plan +0.0%)",
        "measured in process 1: 2.00 GiB (plan -25.0%)",
    ]


def test_a_training_that_takes_less_than_loading_is_not_measured() -> None:
    with pytest.raises(StudyError, match=r"and training no more: raise --rank"):
        resident([])
