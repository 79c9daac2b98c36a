"""A cell has one writer, however processes end, and no lock touches a file of somebody else."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from study.errors import StudyError
from study.store import (
    CellWriter,
    ClaimLost,
    Lock,
    StorageError,
    claim,
    is_claimed,
    is_held,
    read_cell,
)
from tests.store.small_cells import metrics

ROOT = Path(__file__).parents[2]


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a Python text in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists(), "asking creates no file"
    with Lock(path):
        assert is_held(path)
        assert is_held(path), "asking takes nothing away"
        with pytest.raises(TimeoutError):
            Lock(path, timeout=0.01).acquire()
    assert not is_held(path)


def test_a_claim_is_one_processs_until_it_is_released(folder: Path) -> None:
    assert not is_claimed(folder)
    assert not folder.exists(), "asking creates nothing"
    held = claim(folder)
    assert held is not None
    assert is_claimed(folder)
    assert claim(folder) is None
    held.check()
    held.release()
    held.release()
    assert held.is_lost
    assert not is_claimed(folder)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_a_claim_ends_with_its_process_and_not_before(folder: Path) -> None:
    process = script(
        """
        import sys, time
        from pathlib import Path
        from study.store import claim
        held = claim(Path(sys.argv[1]))
        print("held", flush=True)
        time.sleep(600)
        """,
        folder,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    assert is_claimed(folder)
    assert claim(folder) is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_claimed(folder)
    held = claim(folder)
    assert held is not None
    held.release()


def test_of_many_processes_one_gets_the_cell(folder: Path) -> None:
    text = """
        import sys
        from pathlib import Path
        from study.store import claim
        held = claim(Path(sys.argv[1]))
        print(held is not None, flush=True)
        sys.stdin.readline()
    """
    processes = [script(text, folder) for _ in range(4)]
    won = [process.stdout.readline() for process in processes if process.stdout]
    for process in processes:
        process.kill()
        process.wait()
    assert sorted(won) == ["False\n"] * 3 + ["True\n"]


def test_a_reader_does_not_keep_a_writer_out(folder: Path) -> None:
    folder.mkdir(parents=True)
    for _ in range(200):
        assert not is_claimed(folder)
        held = claim(folder)
        assert held is not None
        held.release()


def test_a_claim_on_a_deleted_folder_is_lost(
    folder: Path, begin: Callable[..., CellWriter]
) -> None:
    writer = begin(steps=1)
    folder.rename(folder.with_name("moved"))
    with pytest.raises(ClaimLost, match="was deleted while its cell was trained"):
        writer.append("metrics", metrics(1))
    other = begin(steps=2)
    with pytest.raises(ClaimLost):
        writer.close("complete")
    writer.interrupt()
    other.close("complete", steps_done=1)
    record = read_cell(folder)
    assert record is not None
    assert record["status"] == "complete"


@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_a_lock_that_is_no_file_is_refused_and_not_followed(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    folder.mkdir(parents=True)
    if kind == "a link":
        (folder / "lock").symlink_to(mine)
        with pytest.raises(StorageError, match="symbolic links"):
            claim(folder)
    else:
        os.mkfifo(folder / "lock")
        is_claimed(folder)
    assert mine.read_text() == "mine"


def test_a_lock_keeps_the_content_of_its_file(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "lock").write_text("content")
    held = claim(folder)
    assert held is not None
    assert (folder / "lock").read_text() == "content"
    held.release()


def test_a_disk_without_locks_keeps_nobody_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    held = claim(folder)
    assert held is not None
    held.check()
    assert not is_claimed(folder)


def test_a_disk_that_fails_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(StudyError, match="Input/output error; check the disk"):
        claim(folder)
