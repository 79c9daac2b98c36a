"""``study bench scale``: the study that it writes, and what it measures."""

import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.scale import grid, write
from benchmarks.scale.command import line
from benchmarks.scale.measure import Cost, cost
from study.analysis import analyze
from study.store import load_measured
from study.store.integrity import check_study

AXES = {"adapter.rank": ["2", "4"], "adapter.scaling": ["rslora"], "seed": ["0", "1"]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results with a study of four cells."""
    results = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "axes", lambda cells: AXES)
        write.write_study(results, 4)
        planned = write.plan_cells(results, 4)
    assert [cell.done for cell in planned] == [True] * 4, "a sweep would train them again"
    return results


def test_the_study_is_one_that_a_sweep_could_have_written(written: Path) -> None:
    assert list(check_study(written / grid.NAME)) == []
    tables = load_measured(written / grid.NAME)
    assert set(tables.cells["status"]) == {"complete"}
    found = analyze(tables.cells, tables.metrics, tables.probes)
    norms = found.exponents.query("site == 'adapter_grad' and stat == 'norm' and step == 0")
    assert len(norms), "an exponent is fitted"
    assert norms["seeds"].eq(2).all()
    each = tables.probes.groupby("cell_id", observed=True)["norm"].sum()
    assert each.nunique() == 4, "every cell has its own numbers"


def test_axes_have_as_many_cells_as_asked() -> None:
    for cells in (200, 2000, 10_000):
        values = grid.axes(cells).values()
        product = 1
        for axis in values:
            assert len(set(axis)) == len(axis)
            product *= len(axis)
        assert product == cells


def test_a_command_is_measured_in_its_own_process(written: Path, tmp_path: Path) -> None:
    """The memory of this process, which has imported torch, must not count."""
    taken = cost(["status", str(written / grid.NAME)], tmp_path / "log")
    assert "4 complete" in (tmp_path / "log").read_text()
    assert 0.1 < taken.processor < 60
    assert taken.seconds > 0.1


def test_a_command_is_stopped_where_it_is_timed(written: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    serve = ["dashboard", str(written / grid.NAME)]
    began = time.perf_counter()
    taken = cost(serve, log, lambda: "http://" in log.read_text())
    assert 0 < taken.seconds <= time.perf_counter() - began


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 2:\nstudy: no study in"):
        cost(["status", str(tmp_path)], tmp_path / "log")


def test_a_line_compares_with_the_bars() -> None:
    assert line("status", 2000, Cost(1.0, 1.0, 0.5)).endswith("bar 2 s, 1 GB: met")
    assert line("status", 2000, Cost(3.0, 1.0, 0.5)).endswith("MISSED")
    assert line("status", 2000, Cost(1.0, 1.0, 1.5)).endswith("MISSED")
    assert line("status", 200, Cost(3.0, 1.0, 0.5)).endswith("0.50 GB")


def test_a_table_keeps_the_rows_of_other_sizes(tmp_path: Path) -> None:
    rows = [{"what": "status", "cells": cells, **vars(Cost(1.0, 1.0, 0.5))} for cells in (1, 2)]
    write.write_table(tmp_path, rows)
    write.write_table(tmp_path, [rows[1] | {"seconds": 9.0}])
    table = pd.read_parquet(tmp_path / "scale.parquet")
    assert list(zip(table["cells"], table["seconds"], strict=True)) == [(1, 1.0), (2, 9.0)]
