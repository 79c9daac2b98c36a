"""A cell is right after a crash, or an error of the disk, at any call that changes files."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.store import (
    CellWriter,
    Damaged,
    StorageError,
    claim,
    files,
    is_done,
    read_cell,
    read_record,
    rows_of,
)
from study.store.archive import check_study
from study.store.checkpoints import Checkpoint, load_newest, save
from study.store.rows import SCHEMAS
from tests.store.small_cells import RECORD, append

LAST_STEP = 3
CHECKPOINTED = (0, 1)
"""A checkpoint is written after these steps."""

CRASHED = 17


def train(folder: Path) -> int:
    """What a sweep does with a cell. Returns the first step that it ran."""
    claimed = claim(folder)
    assert claimed is not None, "nobody holds it"
    if is_done(folder):
        claimed.release()
        return LAST_STEP + 1
    found = load_newest(folder, folder.name, lambda line: None)
    first = found.step if found else 0
    record = RECORD | {"cell_id": folder.name}
    try:
        writer = CellWriter(claimed, "x: 1\n", record, first)
    except Damaged:
        first = 0
        writer = CellWriter.open(folder, "x: 1\n", record)
    try:
        for step in range(first, LAST_STEP + 1):
            append(writer, range(step, step + 1))
            if step in CHECKPOINTED:
                state = Checkpoint(folder.name, step + 1, {"weights/A": np.ones(2, "f4")}, {})
                save(folder, state, writer.sync)
        writer.append("truncations", pd.DataFrame([{"kept": 1.0, "loss": 2.0, "share": 0.5}]))
        writer.close("complete", steps_done=LAST_STEP)
    except StorageError:
        writer.interrupt()
        raise
    return first


class Disk:
    """``os`` as ``study.store.files`` sees it, with an action at one of its calls.

    ``at``: the number of the call, from 0. Only calls that change files are counted. ``fsync`` does
    nothing: a process that is killed loses nothing that it wrote.
    """

    CALLS = ("write", "fsync", "replace", "unlink", "mkdir", "rmdir", "ftruncate")

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.count = at, act, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)

        def counted(*args: Any, **options: Any) -> Any:
            if name in self.CALLS or (name == "open" and args[1] & os.O_CREAT):
                self.count += 1
                if self.count == self.at + 1:
                    self.act()
            return None if name == "fsync" else call(*args, **options)

        return counted if name in (*self.CALLS, "open") else call


def crash() -> None:
    os._exit(CRASHED)


def in_child(act: Callable[[], Any]) -> int:
    """Run ``act`` in a child process. Returns its exit code: 1 for an exception."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_on(disk: Disk, folder: Path) -> int:
    """:func:`train` on a disk that acts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", disk)
        return train(folder)


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    record = read_record(folder)
    assert record is not None
    assert record["status"] == "complete"
    return {name: rows_of(folder, name) for name in SCHEMAS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("undisturbed") / "cells" / "abc"
    assert train(folder) == 0
    return tables(folder)


def assert_right(folder: Path, expected: dict[str, pd.DataFrame]) -> None:
    for name, table in tables(folder).items():
        pd.testing.assert_frame_equal(table, expected[name])
    assert list(check_study(folder.parents[1])) == []


def finish(folder: Path) -> int:
    """:func:`train` on a disk that works."""
    return train_on(Disk(-1, crash), folder)


def number_of_calls(folder: Path) -> int:
    counting = Disk(-1, crash)
    train_on(counting, folder)
    return counting.count


def assert_resumable(folder: Path) -> None:
    record = read_cell(folder) if folder.exists() else None
    assert record is None or record["status"] in ("interrupted", "complete")


def test_a_crash_at_any_call_costs_no_row(
    tmp_path: Path, undisturbed: dict[str, pd.DataFrame]
) -> None:
    calls = number_of_calls(tmp_path / "counted" / "cells" / "abc")
    assert calls > 40
    for at in range(calls):
        folder = tmp_path / str(at) / "cells" / "abc"
        code = in_child(lambda at=at, folder=folder: train_on(Disk(at, crash), folder))
        assert code == CRASHED, at
        assert_resumable(folder)
        finish(folder)
        assert_right(folder, undisturbed)


def test_an_error_at_any_call_is_one_line_and_costs_no_row(
    tmp_path: Path, undisturbed: dict[str, pd.DataFrame]
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    lines = []
    for at in range(number_of_calls(tmp_path / "counted" / "cells" / "abc")):
        folder = tmp_path / str(at) / "cells" / "abc"
        try:
            train_on(Disk(at, fail), folder)
        except StorageError as error:
            lines.append(str(error))
            assert_resumable(folder)
        finish(folder)
        assert_right(folder, undisturbed)
    assert len(lines) > 30
    assert all("Input/output error; check the path" in line and "\n" not in line for line in lines)


def test_a_disk_that_stays_full_loses_nothing_that_was_synced(
    tmp_path: Path, undisturbed: dict[str, pd.DataFrame]
) -> None:
    """From some call on, no write succeeds; then there is space again."""

    class Full(Disk):
        def __getattr__(self, name: str) -> Any:
            call = super().__getattr__(name)
            if self.count >= self.at and name in ("write", "mkdir"):
                self.act()
            return call

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    calls = number_of_calls(tmp_path / "counted" / "cells" / "abc")
    resumed = set()
    for at in range(0, calls, 3):
        folder = tmp_path / str(at) / "cells" / "abc"
        with suppress(StorageError):  # the last calls are of files that a full disk can delete
            train_on(Full(at, fail), folder)
        resumed.add(finish(folder))
        assert_right(folder, undisturbed)
    assert resumed == {0, 1, 2, LAST_STEP + 1}
