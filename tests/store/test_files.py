"""A write is whole or absent and touches no file but its own; a lock ends with its process."""

import os
from pathlib import Path

import pytest

from study.store import (
    Lock,
    StorageError,
    files,
    is_held,
    replacing,
    write_text,
)


def half_written(path: Path) -> None:
    with replacing(path) as draft:
        draft.write_text("half")
        raise RuntimeError("boom")


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="boom"):
        half_written(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "kept"
    mine.write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "link").symlink_to(tmp_path / "mine")
    files.remove(tmp_path / "old")
    files.remove(tmp_path / "old")
    (tmp_path / "file").symlink_to(mine)
    with pytest.raises(StorageError, match="symbolic links"):
        files.create(tmp_path / "file")
    write_text(tmp_path / "file", "new")
    assert mine.read_text() == "mine"
    assert (tmp_path / "file").read_text() == "new"


# Locks.


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
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
