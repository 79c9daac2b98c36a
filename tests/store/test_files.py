"""A write is whole or absent and touches no file but its own; a lock ends with its process."""

import os
from pathlib import Path

import pytest

from study.store import Lock, is_held, replacing, write_text


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


def test_a_write_removes_drafts_of_killed_processes(tmp_path: Path) -> None:
    left, live = tmp_path / "a.1.abcdef.partial", tmp_path / "b.2.abcdef.partial"
    left.write_text("half")
    with Lock(live):  # another process writes it
        write_text(tmp_path / "file", "new")
    assert sorted(os.listdir(tmp_path)) == [live.name, "file"]


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
