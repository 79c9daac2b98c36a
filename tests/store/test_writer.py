"""A writer keeps the rows before a step, moves finished results aside, and stops after an error."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.store import (
    CellWriter,
    Damaged,
    StorageError,
    files,
    is_done,
    load_measured,
    read_cell,
    read_record,
    rows_of,
)
from tests.store.small_cells import append, metrics

Begin = Callable[..., CellWriter]
ENDED = ["config.yaml", "lock", "metrics.parquet", "probes.parquet", "record.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def steps(folder: Path) -> list[int]:
    return rows_of(folder, "metrics")["step"].to_list()


def test_an_interrupted_cell_keeps_its_rows_and_says_how_far_it_came(
    folder: Path, begin: Begin
) -> None:
    begin(steps=3).interrupt(steps_done=2)
    cell = read_cell(folder)
    assert cell is not None
    assert (cell["status"], cell["steps_done"], cell["seconds"]) == ("interrupted", 2, 0.2)
    assert steps(folder) == [0, 1, 2]
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000002.safetensors").touch()
    begin().close("complete")
    assert names(folder) == ["config.yaml", "lock", "record.json"], "it began again"


def test_a_resumed_cell_keeps_the_rows_before_its_step(folder: Path, begin: Begin) -> None:
    begin(steps=4).interrupt()
    writer = begin(first=2)
    assert steps(folder) == [0, 1]
    append(writer, range(2, 5)).close("complete")
    assert rows_of(folder, "probes")["layer"].to_list()[::2] == ["l0", "l1", "l2", "l3", "l4"]
    assert names(folder) == ENDED
    assert record(folder)["format"] == 1
    assert is_done(folder)


@pytest.mark.parametrize("is_unreadable", [False, True])
def test_the_results_of_an_ended_cell_are_moved_aside(
    folder: Path, begin: Begin, is_unreadable: bool
) -> None:
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


def test_a_run_that_had_ended_is_continued(folder: Path, begin: Begin) -> None:
    """A Trainer's run can be resumed from a checkpoint after it has ended."""
    begin(steps=4).close("complete")
    begin(steps=6, first=3).close("complete")
    assert steps(folder) == [0, 1, 2, 3, 4, 5]
    (aside,) = (folder.parents[1] / "aside").iterdir()
    assert (aside / "metrics.parquet").exists()


def test_rows_that_are_gone_are_damage(folder: Path, begin: Begin) -> None:
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
    folder: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that was refused is not followed by others, which would leave a gap."""
    disk = FullDisk()
    monkeypatch.setattr(files, "os", disk)
    writer = begin(steps=3)
    size = (folder / "metrics.arrows").stat().st_size
    disk.full = True
    with pytest.raises(StorageError) as error:
        writer.append("metrics", metrics(3))
    assert str(error.value) == (
        f"can't write {folder / 'metrics.arrows'}: No space left on device; "
        "free some space, then run the same command again"
    )
    assert error.value.errno == errno.ENOSPC
    assert (folder / "metrics.arrows").stat().st_size == size, "no half row"
    disk.full = False
    for act in (
        lambda: writer.append("metrics", metrics(4)),
        writer.sync,
        lambda: writer.close("complete"),
    ):
        with pytest.raises(StorageError):
            act()
    disk.full = True
    writer.interrupt(steps_done=2)
    disk.full = False
    cell = read_cell(folder)
    assert cell is not None
    assert (cell["status"], cell["steps_done"]) == ("interrupted", 2)
    begin(steps=5, first=3).close("complete")
    assert steps(folder) == [0, 1, 2, 3, 4]


def test_a_writer_whose_folder_was_deleted_writes_nothing(folder: Path, begin: Begin) -> None:
    writer = begin(steps=1)
    folder.rename(folder.with_name("moved"))
    with pytest.raises(StorageError, match="No such file or directory"):
        writer.append("metrics", metrics(1))
    other = begin(steps=2)
    with pytest.raises(StorageError):
        writer.close("complete")
    writer.interrupt()
    other.close("complete", steps_done=1)
    assert read_record(folder)["status"] == "complete"  # type: ignore[index]


def test_no_link_in_a_received_folder_is_followed(
    folder: Path, tmp_path: Path, begin: Begin
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    begin(steps=2).interrupt()
    for name in ("config.yaml", "metrics.arrows", "probes.arrows", "metrics.parquet", "error.log"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(mine)
    begin(steps=2).close("complete")
    assert mine.read_text() == "mine"
    assert is_done(folder)
