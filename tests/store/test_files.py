"""A write is whole or absent, and a lock ends with its process."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from study.store import is_held, lock, replacing, write_text

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
