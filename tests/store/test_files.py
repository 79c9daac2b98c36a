"""A write is whole or absent, and a lock ends with its process."""

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
    is_held,
    lock,
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


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists(), "asking creates no file"
    with lock(path):
        assert is_held(path)
        assert is_held(path), "asking takes nothing away"
        with pytest.raises(TimeoutError):
            lock(path, timeout=0.01).acquire()
    assert not is_held(path)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    run_and_kill(f"""
        import os, signal
        from pathlib import Path
        from study.store import lock
        with lock(Path({str(path)!r})):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert path.exists()
    assert not is_held(path)


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
    "remove a folder": ("rmdir", lambda folder: files.remove_folder(folder / "inner")),
    "name": ("link", lambda folder: files.name_new(folder / "old", folder / "new")),
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


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two names, one is the first all the same."""
    (tmp_path / "draft").write_text("content")
    monkeypatch.setattr(files, "os", Failing("link", errno.EPERM))
    assert files.name_new(tmp_path / "draft", tmp_path / "name")
    assert not files.name_new(tmp_path / "draft", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "content"


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
    files.remove_folder(tmp_path / "old")
    files.remove_folder(tmp_path / "old")
    assert os.listdir(tmp_path) == ["mine"]
    assert os.listdir(tmp_path / "mine") == ["kept"]
