"""A cell is right after a crash, or an error of the disk, at any call that changes files."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.store import CellWriter, Damaged, StorageError, claim, files, is_done, read_cell, rows_of
from study.store.archive import check_study
from study.store.checkpoints import Checkpoint, load_newest, save
from study.store.rows import SCHEMAS
from tests.store.small_cells import RECORD, append

LAST_STEP = 3
CRASHED = 17


def train(folder: Path) -> None:
    """What a sweep does with a cell, with a checkpoint after the first two steps."""
    claimed = claim(folder)
    assert claimed is not None, "nobody holds it"
    if is_done(folder):
        claimed.release()
        return
    found = load_newest(folder, folder.name, lambda line: None)
    first = found.step if found else 0
    try:
        writer = CellWriter(claimed, "x: 1\n", dict(RECORD), first)
    except Damaged:
        first = 0
        writer = CellWriter.open(folder, "x: 1\n", dict(RECORD))
    try:
        for step in range(first, LAST_STEP + 1):
            append(writer, range(step, step + 1))
            if step < 2:
                state = Checkpoint(folder.name, step + 1, {"weights/A": np.ones(2, "f4")}, {})
                save(folder, state, writer.sync)
        writer.append("truncations", pd.DataFrame([{"kept": 1.0, "loss": 2.0, "share": 0.5}]))
        writer.close("complete", steps_done=LAST_STEP)
    except StorageError:
        writer.interrupt()
        raise


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


def fail() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def train_on(disk: Disk, folder: Path) -> None:
    """:func:`train` on a disk that acts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", disk)
        train(folder)


def train_and_crash(at: int, folder: Path) -> None:
    """:func:`train` in a child process that ends at a call."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            train_on(Disk(at, crash), folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == CRASHED, at


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    record = read_cell(folder)
    assert record is not None
    assert record["status"] == "complete"
    return {name: rows_of(folder, name) for name in SCHEMAS}


def test_a_crash_or_an_error_at_any_call_costs_no_row(tmp_path: Path) -> None:
    counting, whole = Disk(-1, crash), tmp_path / "whole" / "cells" / "abc"
    train_on(counting, whole)
    assert counting.count > 40
    undisturbed, lines = tables(whole), []
    for at in range(counting.count):
        crashed, failed = (tmp_path / f"{how} {at}" / "cells" / "abc" for how in ("crash", "error"))
        train_and_crash(at, crashed)
        try:
            train_on(Disk(at, fail), failed)
        except StorageError as error:
            lines.append(str(error))
        for folder in (crashed, failed):
            record = read_cell(folder) if folder.exists() else None
            assert record is None or record["status"] in ("interrupted", "complete")
            train_on(Disk(-1, crash), folder)
            for name, table in tables(folder).items():
                pd.testing.assert_frame_equal(table, undisturbed[name])
            assert list(check_study(folder.parents[1])) == []
    assert len(lines) > 30
    assert all("Input/output error; check the path" in line and "\n" not in line for line in lines)
