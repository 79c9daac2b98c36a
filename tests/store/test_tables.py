"""Results survive killed processes and are read as tidy tables."""

import json
import math
import os
import random
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import study
from study.errors import StudyError
from study.store import (
    CellWriter,
    Damaged,
    is_done,
    load_cells,
    load_measured,
    rows_of,
)
from study.store.rows import SCHEMAS, read_parquet, write_parquet
from study.sweeps.progress import render
from study.vocabulary.quantities import STATS
from tests.store.small_cells import RECORD, append, complete, flip, probes


def writer(study_dir: Path, cell_id: str = "abc") -> CellWriter:
    return CellWriter.open(study_dir / "cells" / cell_id, "x: 1\n", RECORD | {"cell_id": cell_id})


def test_round_trip(tmp_path: Path) -> None:
    cell = append(writer(tmp_path), range(3))
    assert not is_done(cell.folder)
    running = load_measured(tmp_path)
    assert list(running.cells["status"]) == ["running"]
    assert list(running.metrics["step"]) == [0, 1, 2], "readable while it runs"

    cell.close("complete", seconds=1.0, steps_done=2)
    assert is_done(cell.folder)
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
    expected = {"rank": 8.0, "scaling": "power", "exponent": 0.7, "targets": "q_proj,v_proj"}
    expected |= {"status": "complete", "seconds": 1.0, "steps_done": 2}
    assert {key: row[key] for key in expected} == expected


def test_the_error_for_a_folder_without_a_study_names_those_nearby(tmp_path: Path) -> None:
    writer(tmp_path / "mine").close("complete")
    with pytest.raises(StudyError, match=r"no study in .*yours.*choose from .*mine"):
        load_measured(tmp_path / "yours")


def test_a_running_cell_has_done_the_steps_of_its_last_whole_row(tmp_path: Path) -> None:
    cell = writer(tmp_path)
    assert load_cells(tmp_path)["steps_done"].isna().all(), "before its first row"
    append(cell, range(50))
    assert load_cells(tmp_path)["steps_done"].iloc[0] == 49
    stream = cell.folder / "metrics.arrows"
    os.truncate(stream, stream.stat().st_size - 40)
    assert load_cells(tmp_path)["steps_done"].iloc[0] == 48
    assert list(load_measured(tmp_path).metrics["step"]) == [*range(49)]
    with pytest.raises(Damaged, match=r"metrics.arrows has \d+ bytes instead of"):
        cell.close("complete", steps_done=49)
    cell.interrupt()
    assert load_cells(tmp_path)["status"].to_list() == ["interrupted"]


def test_unreadable_cells_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One has a bad record, and one a flipped bit in a table, which only its hash shows."""
    for name in ("good", "bad record", "flipped"):
        complete(tmp_path, name)
    (tmp_path / "cells" / "bad record" / "record.json").write_bytes(b"\0" * 10)
    flip(tmp_path / "cells" / "flipped" / "probes.parquet")
    with caplog.at_level("WARNING"):
        tables = load_measured(tmp_path)
    assert tables.cells["cell_id"].to_list() == ["good"]
    assert set(tables.metrics["cell_id"]) == set(tables.probes["cell_id"]) == {"good"}
    [line] = (line.getMessage() for line in caplog.records)
    assert line.startswith("2 of the cells of")
    assert "bad record: record.json is damaged" in line
    assert line.endswith(f"run `study check {tmp_path}`")
    listed = load_cells(tmp_path, with_unreadable=True)
    assert dict(zip(listed["cell_id"], listed["status"], strict=True))["bad record"] == "unreadable"
    assert "bad record" in render(listed)


PROBED = pa.Table.from_pandas(
    pd.concat([probes(step) for step in range(100)]).reindex(columns=SCHEMAS["probes"].names),
    schema=SCHEMAS["probes"],
    preserve_index=False,
)
ROWS = PROBED.to_pylist()


@pytest.mark.parametrize("with_hash", [True, False])
def test_a_flipped_bit_is_seen(tmp_path: Path, with_hash: bool) -> None:
    """Without a hash, only the pages are compared. No flip ends in an error of another kind."""
    path = tmp_path / "probes.parquet"
    written = write_parquet(path, PROBED)
    expected = written if with_hash else None
    assert read_parquet(path, PROBED.schema, expected).to_pylist() == ROWS
    good, found = path.read_bytes(), []
    for place in random.Random(1).choices(range(8 * len(good)), k=60):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        with suppress(Damaged):
            found.append(read_parquet(path, PROBED.schema, expected))
    assert sum(table.to_pylist() != ROWS for table in found) <= (0 if with_hash else 1)


def test_the_record_says_which_files_count(tmp_path: Path) -> None:
    """After a crash, a table may stand beside its stream; the record decides."""
    folder = complete(tmp_path)
    path = folder / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"status": "interrupted"}))
    assert rows_of(folder, "metrics").empty
    path.write_text(json.dumps(record))
    assert len(rows_of(folder, "metrics")) == 1
