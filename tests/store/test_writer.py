"""Results survive killed processes and are read as tidy tables; a cell has one writer."""

import math
import os

import pandas as pd
import pyarrow as pa
import pytest

import study
from study.store import (
    Damaged,
    Lock,
    is_done,
    is_held,
    load_cells,
    load_measured,
    read_cell,
    rows,
    rows_of,
)
from study.store.rows import SCHEMAS
from study.store.writer import remove_leftovers
from study.vocabulary.quantities import STATS
from tests.store.small_cells import append

ENDED = ["config.yaml", "lock", "metrics.parquet", "probes.parquet", "record.json"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def steps(folder):
    return rows_of(folder, "metrics")["step"].to_list()


def test_an_interrupted_cell_keeps_its_rows_and_says_how_far_it_came(folder, begin):
    begin(steps=3).interrupt(steps_done=2)
    cell = read_cell(folder)
    assert (cell["status"], cell["steps_done"], cell["seconds"]) == ("interrupted", 2, 0.2)
    assert steps(folder) == [0, 1, 2]
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000002.safetensors").touch()
    begin().close("complete")
    assert names(folder) == ["config.yaml", "lock", "record.json"], "it began again"


@pytest.mark.parametrize("is_unreadable", [False, True])
def test_the_results_of_an_ended_cell_are_moved_aside(folder, begin, is_unreadable):
    writer = begin(steps=2)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_text("weights")
    writer.close("failed")
    tables = (folder / "metrics.parquet").read_bytes()
    if is_unreadable:
        (folder / "record.json").write_text("{")
    begin().interrupt()
    assert names(folder) == ["config.yaml", "lock", "record.json"]
    (aside,) = (folder.parents[1] / "aside").iterdir()
    assert aside.name.startswith("abc.")
    assert (aside / "metrics.parquet").read_bytes() == tables
    assert (aside / "adapter" / "adapter_model.safetensors").read_text() == "weights"
    assert len(load_measured(folder.parents[1]).cells) == 1, "nothing reads what was moved"


def test_a_renamed_study_has_the_name_of_its_folder(folder, begin):
    """So that its old and its new cells are one study."""
    begin(steps=2).close("complete")
    moved = folder.parents[1].rename(folder.parents[2] / "renamed")
    assert set(load_measured(moved).cells["study"]) == {"renamed"}


def test_a_run_that_had_ended_is_continued(folder, begin):
    """A Trainer's run can be resumed from a checkpoint after it has ended."""
    begin(steps=4).close("complete")
    begin(steps=6, first=3).close("complete")
    assert steps(folder) == [0, 1, 2, 3, 4, 5]
    (aside,) = (folder.parents[1] / "aside").iterdir()
    assert (aside / "metrics.parquet").exists()


def test_what_a_kill_left_in_an_ended_cell_is_removed(folder, begin):
    begin(steps=2).close("complete")
    (folder / "checkpoints").mkdir()
    for name in ("checkpoints/step-00000002.json", "metrics.arrows", "record.json.1.ab.partial"):
        (folder / name).touch()
    with Lock(folder / "lock"):
        remove_leftovers(folder)
        assert (folder / "metrics.arrows").exists(), "a process may write it"
    remove_leftovers(folder)
    assert names(folder) == ENDED
    begin("abd", 2).interrupt()
    remove_leftovers(folder.with_name("abd"))
    assert steps(folder.with_name("abd")) == [0, 1]


def test_rows_that_are_gone_are_damage(folder, begin):
    begin(steps=3).interrupt()
    with pytest.raises(Damaged, match=r"the last row before step 5 is of step \[2\]"):
        begin(first=5)
    stream = folder / "probes.arrows"
    os.truncate(stream, stream.stat().st_size - 1)
    with pytest.raises(Damaged, match=r"probes.arrows has \d+ bytes instead of \d+"):
        begin(first=2)
    (folder / "record.json").unlink()
    with pytest.raises(Damaged, match=r"record.json is missing"):
        begin(first=2)
    begin().close("complete")  # and nobody holds it


def test_a_lock_is_held_until_it_is_released(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists(), "asking creates no file"
    with Lock(path):
        assert is_held(path)
        assert is_held(path), "asking takes nothing away"
        with pytest.raises(TimeoutError):
            Lock(path, timeout=0.01)
    assert not is_held(path)
    for _ in range(200):  # a reader does not keep a writer out
        assert not is_held(path)
        with Lock(path, timeout=0):
            pass


# What is read.


def test_round_trip(tmp_path, begin):
    cell = begin(steps=3)
    assert not is_done(cell.folder)
    running = load_measured(tmp_path)
    assert list(running.cells["status"]) == ["running"]
    assert list(running.metrics["step"]) == [0, 1, 2], "readable while it runs"

    cell.close("complete", seconds=1.0, steps_done=2)
    assert is_done(cell.folder)
    assert read_cell(cell.folder)["format"] == 1
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


def test_a_running_cell_of_an_older_version_lacks_a_statistic(tmp_path, begin, monkeypatch):
    begin(steps=3)
    newer = SCHEMAS["probes"].append(pa.field("of_a_newer_version", pa.float32()))
    monkeypatch.setattr(rows, "SCHEMAS", {**{n: SCHEMAS[n] for n in SCHEMAS}, "probes": newer})
    probes = load_measured(tmp_path).probes
    assert probes["of_a_newer_version"].isna().all()
    assert len(probes) == 6


def test_a_running_cell_has_done_the_steps_of_its_last_whole_row(tmp_path, begin):
    cell = begin()
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
