"""Results survive killed processes and are read as tidy tables."""

import math
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import study
from study.errors import StudyError
from study.store import (
    CellWriter,
    Damaged,
    is_done,
    last_metrics,
    load_cell_table,
    load_cells,
    load_measured,
)
from study.store.rows import SCHEMAS, read_parquet, write_parquet
from study.sweeps.progress import render
from study.vocabulary.quantities import STATS
from tests.store.small_cells import RECORD, flip, metrics, probes


def writer(study_dir: Path, cell_id: str = "abc") -> CellWriter:
    return CellWriter.open(study_dir / "cells" / cell_id, "x: 1\n", RECORD | {"cell_id": cell_id})


def test_round_trip(tmp_path: Path) -> None:
    cell = writer(tmp_path)
    for step in range(3):
        cell.append("metrics", metrics(step))
        cell.append("probes", probes(step))
    assert not is_done(cell.folder)
    running = load_measured(tmp_path)
    assert list(running.cells["status"]) == ["running"]
    assert list(running.metrics["step"]) == [0, 1, 2], "readable while it runs"

    cell.close("complete", seconds=1.0, steps_done=2)
    assert is_done(cell.folder)
    assert sorted(p.name for p in cell.folder.iterdir()) == [
        "config.yaml",
        "lock",
        "metrics.parquet",
        "probes.parquet",
        "record.json",
    ]
    tables = study.load(str(tmp_path))
    pd.testing.assert_frame_equal(tables.metrics, running.metrics)
    pd.testing.assert_frame_equal(tables.probes, running.probes)
    assert tables.metrics["eval_loss"].isna().all(), "missing is NaN, never 0"
    assert list(tables.probes["norm"]) == [2.0, math.inf] * 3, "non-finite values are kept"
    assert tables.probes["rms"].isna().all()
    assert list(tables.probes["layer"]) == ["l0", "other", "l1", "other", "l2", "other"]
    keys = ["cell_id", "step", "layer", "block", "kind", "site", "batch", "d_in", "d_out"]
    assert list(tables.probes.columns) == [*keys, *STATS]
    row = tables.cells.iloc[0]
    assert (row["rank"], row["scaling"], row["exponent"], row["targets"]) == (
        8.0,
        "power",
        0.7,
        "q_proj,v_proj",
    )
    assert (row["status"], row["seconds"], row["steps_done"]) == ("complete", 1.0, 2)


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_partial_row_at_the_end_is_not_read(tmp_path: Path, cut: int) -> None:
    cell = writer(tmp_path)
    for step in range(3):
        cell.append("metrics", metrics(step))
    stream = cell.folder / "metrics.arrows"
    os.truncate(stream, stream.stat().st_size - cut)
    assert list(load_measured(tmp_path).metrics["step"]) == [0, 1]


def test_diverged_is_done_and_failed_is_not(tmp_path: Path) -> None:
    for status, done in (("diverged", True), ("failed", False)):
        cell = writer(tmp_path, status)
        cell.close(status, error="why")
        assert is_done(cell.folder) == done
    assert set(load_cells(tmp_path)["status"]) == {"diverged", "failed"}


def test_the_error_for_a_folder_without_a_study_names_those_nearby(tmp_path: Path) -> None:
    writer(tmp_path / "mine").close("complete")
    with pytest.raises(StudyError, match=r"no study in .*yours.*choose from .*mine"):
        load_measured(tmp_path / "yours")


def test_a_running_cell_has_done_the_steps_of_its_last_row(tmp_path: Path) -> None:
    cell = writer(tmp_path)
    assert math.isnan(load_cells(tmp_path)["steps_done"].astype(float).iloc[0]), (
        "before its first row"
    )
    for step in range(50):
        cell.append("metrics", metrics(step))
    assert load_cells(tmp_path)["steps_done"].iloc[0] == 49
    stream = cell.folder / "metrics.arrows"
    os.truncate(stream, stream.stat().st_size - 40)
    last = last_metrics(stream)
    assert last is not None
    assert (last["step"], last["tokens"], last["loss"]) == (48, 480, 1.5), "the last whole row"
    with pytest.raises(Damaged, match=r"metrics.arrows has \d+ bytes instead of \d+"):
        cell.close("complete", steps_done=49)
    cell.interrupt()
    assert load_cells(tmp_path)["status"].to_list() == ["interrupted"]


def test_unreadable_cells_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One has a bad record, and one a flipped bit in a table, which only its hash shows."""
    for name in ("good", "norecord", "flipped"):
        cell = writer(tmp_path, name)
        cell.append("metrics", metrics(0))
        cell.append("probes", probes(0))
        cell.close("complete", seconds=1.0, steps_done=0)
    (tmp_path / "cells" / "norecord" / "record.json").write_bytes(b"\0" * 10)
    table = tmp_path / "cells" / "flipped" / "probes.parquet"
    flip(table)

    with caplog.at_level("WARNING"):
        tables = load_measured(tmp_path)
    assert tables.cells["cell_id"].to_list() == ["good"]
    assert set(tables.metrics["cell_id"]) == set(tables.probes["cell_id"]) == {"good"}
    first, second = (line.getMessage() for line in caplog.records)
    assert "1 of the cells of" in first
    assert "norecord: record.json is not valid JSON" in first
    assert "flipped: probes.parquet is damaged" in second
    assert second.endswith(f"run `study check {tmp_path}`")
    listed = load_cells(tmp_path, with_unreadable=True)
    assert dict(zip(listed["cell_id"], listed["status"], strict=True))["norecord"] == "unreadable"
    assert "norecord" in render(listed)


# One table of a cell, which is never read as other numbers.

FLIPS = 60
"""Of one bit each, at random places. With 400: none was read as other numbers."""


@pytest.fixture
def probed() -> pa.Table:
    """200 rows of probes."""
    draw = np.random.default_rng(0)
    rows = [
        {"step": step, "layer": f"l{layer}", "block": layer, "kind": "q_proj", "site": "A"}
        | {"batch": "train", "norm": draw.normal(), "rms": draw.normal()}
        for step in range(20)
        for layer in range(10)
    ]
    frame = pd.DataFrame(rows).reindex(columns=SCHEMAS["probes"].names)
    return pa.Table.from_pandas(frame, schema=SCHEMAS["probes"], preserve_index=False)


@pytest.fixture
def written(tmp_path: Path, probed: pa.Table) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "probes.parquet"
    return path, write_parquet(path, probed)


def each_flip(path: Path, count: int, read: Callable[[], pa.Table]) -> list[pa.Table]:
    """The tables that are read after a bit was flipped; those that are refused are left out."""
    good, draw, found = path.read_bytes(), random.Random(1), []
    for _ in range(count):
        place = draw.randrange(8 * len(good))
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        with suppress(Damaged):
            found.append(read())
    path.write_bytes(good)
    return found


def test_a_flipped_bit_is_seen(written: tuple[Path, dict[str, Any]], probed: pa.Table) -> None:
    path, expected = written
    assert each_flip(path, FLIPS, lambda: read_parquet(path, probed.schema, None, expected)) == []
    assert read_parquet(path, probed.schema, None, expected).equals(probed)
    some = read_parquet(path, probed.schema, ["norm", "step"], expected)
    assert some.equals(probed.select(["norm", "step"]))


def test_without_a_hash_the_pages_are_compared(
    written: tuple[Path, dict[str, Any]], probed: pa.Table
) -> None:
    """Most flips are seen, and none ends in an error of another kind."""
    path, _ = written
    found = each_flip(path, FLIPS, lambda: read_parquet(path, probed.schema))
    assert len(found) < FLIPS
    assert sum(not table.equals(probed) for table in found) <= 1


def test_an_older_table_lacks_new_columns(tmp_path: Path, probed: pa.Table) -> None:
    older = probed.drop_columns(["rms"])
    path = tmp_path / "probes.parquet"
    expected = write_parquet(path, older)
    for content in (expected, None):
        table = read_parquet(path, SCHEMAS["probes"], None, content)
        assert table.schema.names == SCHEMAS["probes"].names
        assert table["rms"].null_count == len(table)


def test_the_record_says_which_files_count(tmp_path: Path, probed: pa.Table) -> None:
    """After a crash, a table may stand beside its stream; the record decides."""
    expected = write_parquet(tmp_path / "probes.parquet", probed)
    for status in ("running", "interrupted"):
        assert len(load_cell_table(tmp_path, "probes", record={"status": status})) == 0
    record = {"status": "complete", "tables": {"probes": expected}}
    assert load_cell_table(tmp_path, "probes", record=record).equals(probed)
    assert len(load_cell_table(tmp_path, "metrics", record=record)) == 0, "it had no rows"
    (tmp_path / "probes.parquet").unlink()
    with pytest.raises(Damaged, match=r"probes\.parquet is missing"):
        load_cell_table(tmp_path, "probes", record=record)
