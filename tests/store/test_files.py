"""A write is whole or absent, and touches no file but its own."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.errors import StudyError
from study.store import (
    ClaimLost,
    Damaged,
    StorageError,
    files,
    replacing,
    write_text,
)

ROOT = Path(__file__).parents[2]


def run_and_kill(script: str) -> None:
    """Run a script that ends by sending SIGKILL to itself."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_is_killed_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    run_and_kill(f"""
        import os, signal
        from pathlib import Path
        from study.store import replacing
        with replacing(Path({str(path)!r})) as draft:
            draft.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert path.read_text() == "old"
    write_text(path, "new γ")
    assert path.read_text(encoding="utf-8") == "new γ"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "folder") as draft:
        (draft / "inner").mkdir(parents=True)
        (draft / "inner/file").write_text("content")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder/inner/file").read_text() == "content"
    assert os.listdir(tmp_path) == ["folder"]


def test_content_is_on_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    sync, rename = os.fsync, os.replace
    names = {os.stat(tmp_path).st_ino: "folder"}

    def fsync(descriptor: int) -> None:
        events.append(names.get(os.fstat(descriptor).st_ino, "file"))
        sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "file", "content")
    assert events == ["file", "rename", "folder"]


class Failing:
    """``os`` whose call ``name`` fails."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            return self._fail
        return getattr(os, name)

    def _fail(self, *_: Any, **__: Any) -> None:
        raise OSError(self.number, os.strerror(self.number))


CALLS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "create": ("open", lambda folder: files.create(folder / "new")),
    "write": ("write", lambda folder: write_text(folder / "new", "content")),
    "sync": ("fsync", lambda folder: write_text(folder / "new", "content")),
    "rename": ("replace", lambda folder: files.rename(folder / "old", folder / "new")),
    "make a folder": ("mkdir", lambda folder: files.make_folder(folder / "a" / "b")),
    "remove": ("unlink", lambda folder: files.remove(folder / "old")),
    "remove a folder": ("rmdir", lambda folder: files.remove(folder / "inner")),
}
FIXES = {
    errno.ENOSPC: "No space left on device; free some space, then run the same command again",
    errno.EROFS: "Read-only file system; choose a folder that you may write",
    errno.EACCES: "Permission denied; choose a folder that you may write",
    errno.EIO: "Input/output error; check the disk, then run the same command again",
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("number", FIXES)
def test_a_call_that_fails_is_a_line_that_names_cause_and_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "inner").mkdir()
    name, act = CALLS[kind]
    monkeypatch.setattr(files, "os", Failing(name, number))
    with pytest.raises(StorageError) as error:
        act(tmp_path)
    assert str(error.value).startswith(f"can't write {tmp_path}")
    assert str(error.value).endswith(f": {FIXES[number]}")
    assert error.value.errno == number
    assert isinstance(error.value, StudyError), "the command prints it"
    assert isinstance(error.value, OSError), "a cache goes on without it"
    assert (tmp_path / "old").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["inner", "old"], "nothing half-written is left"


@pytest.mark.parametrize("kind", [StorageError, ClaimLost, Damaged])
def test_errors_come_back_from_the_processes_of_a_launcher(kind: type[StudyError]) -> None:
    """They are pickled on their way."""
    error = kind("one line")
    if isinstance(error, StorageError):
        error.errno = errno.ENOSPC
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == "one line"
    assert getattr(back, "errno", None) == getattr(error, "errno", None)


def test_new_folders_are_on_disk_before_a_file_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    files.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    files.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        files.make_folder(tmp_path / "file")


def test_a_folder_is_removed_with_all_in_it_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    (tmp_path / "old" / "inner").mkdir(parents=True)
    (tmp_path / "old" / "inner" / "file").touch()
    (tmp_path / "old" / "link").symlink_to(tmp_path / "mine")
    files.remove(tmp_path / "old")
    files.remove(tmp_path / "old")
    assert os.listdir(tmp_path) == ["mine"]
    assert os.listdir(tmp_path / "mine") == ["kept"]


def test_what_a_killed_write_left_is_used_by_the_next(tmp_path: Path) -> None:
    run_and_kill(f"""
        import os, signal
        from pathlib import Path
        from study.store import files, write_text
        files.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write_text(Path({str(tmp_path / "table")!r}), "a long first text")
    """)
    assert os.listdir(tmp_path) == ["table.partial"]
    write_text(tmp_path / "table", "second")
    assert os.listdir(tmp_path) == ["table"]
    assert (tmp_path / "table").read_text() == "second"


def test_two_processes_that_write_a_file_do_so_in_turn(tmp_path: Path) -> None:
    text = f"""
        import sys
        from pathlib import Path
        from study.store import write_text
        for _ in range(50):
            write_text(Path({str(tmp_path / "file")!r}), sys.argv[1] * 9999)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(text)]
    processes = [subprocess.Popen([*command, letter], env=environment) for letter in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "file").read_text() in ("a" * 9999, "b" * 9999)
    assert os.listdir(tmp_path) == ["file"]


def test_no_link_is_followed_when_a_file_is_written(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("file", "draft.partial"):
        (tmp_path / name).symlink_to(mine)
    write_text(tmp_path / "file", "new")
    with pytest.raises(StorageError, match="symbolic links"):
        write_text(tmp_path / "draft", "new")
    with pytest.raises(StorageError, match="symbolic links"):
        files.create(tmp_path / "draft.partial")
    assert mine.read_text() == "mine"
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    for name in ("file", "file.partial"):
        (tmp_path / name / "inner").mkdir(parents=True)
    write_text(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "new"
