"""A writer keeps the rows before a step, moves finished results aside, and stops after an error."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.store import (
    CellWriter,
    Damaged,
    StorageError,
    files,
    is_done,
    last_metrics,
    load_measured,
    read_cell,
    read_record,
    rows_of,
)
from study.store.rows import read_synced
from tests.store.small_cells import RECORD, metrics
from tests.store.small_cells import append as run


def opened(folder: Path, first_step: int = 0) -> CellWriter:
    return CellWriter.open(folder, "x: 1\n", dict(RECORD), first_step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def test_an_interrupted_cell_keeps_its_rows_and_says_how_far_it_came(folder: Path) -> None:
    run(opened(folder), range(3)).interrupt(steps_done=2)
    cell = read_cell(folder)
    assert cell is not None
    assert (cell["status"], cell["steps_done"], cell["seconds"]) == ("interrupted", 2, 0.2)
    assert names(folder) == [
        *("config.yaml", "lock", "metrics.arrows", "probes.arrows", "record.json")
    ]
    assert set(record(folder)["streams"]) == {"metrics", "probes"}
    assert all(isinstance(size, int) for size in record(folder)["streams"].values())


def test_a_resumed_cell_keeps_the_rows_before_its_step(folder: Path) -> None:
    run(opened(folder), range(4)).interrupt()
    writer = opened(folder, first_step=2)
    assert rows_of(folder, "metrics")["step"].to_list() == [0, 1]
    assert rows_of(folder, "probes")["layer"].to_list()[::2] == ["l0", "l1"]
    run(writer, range(2, 5)).close("complete")
    assert rows_of(folder, "probes")["layer"].to_list()[::2] == ["l0", "l1", "l2", "l3", "l4"]
    assert rows_of(folder, "metrics")["step"].to_list() == [0, 1, 2, 3, 4]
    assert names(folder) == [
        *("config.yaml", "lock", "metrics.parquet", "probes.parquet", "record.json")
    ]
    assert record(folder)["format"] == 1
    assert "streams" not in record(folder)
    assert is_done(folder)


def test_resumed_tables_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    whole, parts = tmp_path / "a" / "cells" / "abc", tmp_path / "b" / "cells" / "abc"
    run(opened(whole), range(6)).close("complete")
    run(opened(parts), range(3)).interrupt()
    run(opened(parts, 1), range(1, 4)).interrupt()
    run(opened(parts, 4), range(4, 6)).close("complete")
    expected, found = (load_measured(folder.parents[1]) for folder in (whole, parts))
    for name in ("metrics", "probes", "truncations"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))


def test_a_cell_that_begins_again_has_no_rows_and_no_checkpoints(folder: Path) -> None:
    run(opened(folder), range(4)).interrupt()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000002.safetensors").touch()
    opened(folder).close("complete")
    assert names(folder) == ["config.yaml", "lock", "record.json"]


@pytest.mark.parametrize("status", ["complete", "failed", "diverged"])
def test_the_results_of_an_ended_cell_are_moved_aside(folder: Path, status: str) -> None:
    writer = run(opened(folder), range(2))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_text("weights")
    writer.close(status)
    tables = (folder / "metrics.parquet").read_bytes()
    opened(folder).interrupt()
    assert names(folder) == ["config.yaml", "lock", "record.json"]
    (aside,) = (folder.parents[1] / "aside").iterdir()
    assert aside.name.startswith("abc.")
    assert (aside / "metrics.parquet").read_bytes() == tables
    assert (aside / "adapter" / "adapter_model.safetensors").read_text() == "weights"
    assert record(aside)["status"] == status
    assert len(load_measured(folder.parents[1]).cells) == 1, "nothing reads what was moved"


def test_a_cell_whose_record_is_unreadable_is_moved_aside(folder: Path) -> None:
    run(opened(folder), range(2)).close("complete")
    (folder / "record.json").write_text('{"cell_id": "ab')
    opened(folder).close("complete")
    (aside,) = (folder.parents[1] / "aside").iterdir()
    assert (aside / "record.json").read_text() == '{"cell_id": "ab'
    assert (aside / "metrics.parquet").exists()


def test_a_run_that_had_ended_is_continued(folder: Path) -> None:
    """A Trainer's run can be resumed from a checkpoint after it has ended."""
    run(opened(folder), range(4)).close("complete")
    run(opened(folder, 3), range(3, 6)).close("complete")
    assert rows_of(folder, "metrics")["step"].to_list() == [0, 1, 2, 3, 4, 5]
    (aside,) = (folder.parents[1] / "aside").iterdir()
    assert (aside / "metrics.parquet").exists()


def test_what_follows_the_rows_that_were_synced_is_not_kept(folder: Path) -> None:
    """After a power cut, it may be anything: a batch of zeros reads as a row of step 0."""
    writer = run(opened(folder), range(2))
    writer.sync()
    sizes = record(folder)["streams"]
    run(writer, range(2, 3))
    writer.claim.release()  # as if the process had been killed
    for name, size in sizes.items():
        stream = folder / f"{name}.arrows"
        whole = stream.read_bytes()
        for part in range(size, len(whole), 9):
            stream.write_bytes(whole[:part] + bytes(len(whole) - part))
            last_metrics(folder / "metrics.arrows")
            assert set(read_synced(stream, record(folder))["step"].to_pylist()) == {0, 1}
        stream.write_bytes(whole[:size] + bytes(len(whole) - size))
    run(opened(folder, 2), range(2, 4)).close("complete")
    assert rows_of(folder, "metrics")["step"].to_list() == [0, 1, 2, 3]
    assert rows_of(folder, "probes")["step"].to_list()[::2] == [0, 1, 2, 3]


def test_rows_that_were_synced_and_are_gone_are_damage(folder: Path) -> None:
    writer = run(opened(folder), range(3))
    writer.interrupt()
    stream = folder / "probes.arrows"
    os.truncate(stream, stream.stat().st_size - 1)
    with pytest.raises(Damaged, match=r"probes.arrows has \d+ bytes instead of \d+"):
        opened(folder, 2)
    opened(folder).close("complete")  # and nobody holds it


def test_rows_must_reach_the_step(folder: Path) -> None:
    run(opened(folder), range(3)).interrupt()
    with pytest.raises(Damaged, match="the last row before step 5 is of step 2"):
        opened(folder, 5)
    (folder / "metrics.arrows").unlink()
    with pytest.raises(Damaged, match=r"metrics.arrows is missing"):
        opened(folder, 2)
    (folder / "record.json").unlink()
    with pytest.raises(Damaged, match=r"record.json is missing"):
        opened(folder, 2)


def test_rows_after_the_last_sync_are_trained_again(folder: Path) -> None:
    """After a power cut they may be anything, and no checkpoint is later than the last sync."""
    writer = run(opened(folder), range(2))
    writer.sync()
    run(writer, range(2, 4))
    writer.claim.release()  # as if the process had been killed
    run(opened(folder, 2), range(2, 5)).close("complete")
    assert rows_of(folder, "metrics")["step"].to_list() == [0, 1, 2, 3, 4]


class FullDisk:
    """``os`` whose writes write half and fail while ``full``."""

    full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, file: int, content: memoryview) -> int:
        if self.full and len(content) > 1:
            return os.write(file, content[: len(content) // 2])
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(file, content)


def test_a_full_disk_interrupts_the_cell_and_keeps_whole_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk()
    monkeypatch.setattr(files, "os", disk)
    writer = run(opened(folder), range(3))
    size = (folder / "metrics.arrows").stat().st_size
    disk.full = True
    for _ in range(2):
        with pytest.raises(StorageError) as error:
            writer.append("metrics", metrics(3))
        assert str(error.value) == (
            f"can't write {folder / 'metrics.arrows'}: No space left on device; "
            "free some space, then run the same command again"
        )
        assert error.value.errno == errno.ENOSPC
    assert (folder / "metrics.arrows").stat().st_size == size, "no half row"
    with pytest.raises(StorageError):
        writer.close("complete")
    writer.interrupt(steps_done=2)
    cell = read_cell(folder)
    assert cell is not None
    assert (cell["status"], cell["steps_done"]) == ("interrupted", 2)
    disk.full = False
    run(opened(folder, 3), range(3, 5)).close("complete")
    assert rows_of(folder, "metrics")["step"].to_list() == [0, 1, 2, 3, 4]


def test_a_row_that_was_refused_is_not_followed_by_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space that returns a step later would leave a gap."""
    disk = FullDisk()
    monkeypatch.setattr(files, "os", disk)
    writer = opened(folder)
    disk.full = True
    with pytest.raises(StorageError):
        writer.append("metrics", metrics(0))
    disk.full = False
    for act in (
        lambda: writer.append("metrics", metrics(1)),
        writer.sync,
        lambda: writer.close("complete"),
    ):
        with pytest.raises(StorageError):
            act()
    writer.interrupt()
    assert read_record(folder)["status"] == "interrupted"  # type: ignore[index]


def test_a_folder_in_the_place_of_a_stale_file_does_not_stop_a_cell(folder: Path) -> None:
    run(opened(folder), range(2)).interrupt()
    (folder / "metrics.arrows").unlink()
    for name in ("metrics.arrows", "config.yaml.partial", "probes.parquet", "error.log"):
        (folder / name / "inner").mkdir(parents=True)
    run(opened(folder), range(2)).close("complete")
    assert is_done(folder)


def test_no_link_in_a_received_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    run(opened(folder), range(2)).interrupt()
    for name in ("config.yaml", "metrics.arrows", "probes.arrows", "metrics.parquet", "error.log"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(mine)
    run(opened(folder), range(2)).close("complete")
    assert mine.read_text() == "mine"
    assert is_done(folder)
