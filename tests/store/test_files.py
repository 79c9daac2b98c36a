"""A write is whole or absent and touches no file but its own; a lock ends with its process."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from study.errors import StudyError
from study.store import (
    Damaged,
    Lock,
    StorageError,
    claim,
    files,
    is_claimed,
    is_held,
    replacing,
    write_text,
)

ROOT = Path(__file__).parents[2]


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a Python text in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "folder") as draft:
        (draft / "inner").mkdir(parents=True)
        (draft / "inner/file").write_text("content")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder/inner/file").read_text() == "content"
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", [StorageError, Damaged])
def test_errors_come_back_from_the_processes_of_a_launcher(kind: type[StudyError]) -> None:
    """They are pickled on their way."""
    back = pickle.loads(pickle.dumps(kind("one line")))
    assert (type(back), str(back)) == (kind, "one line")


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


def test_of_many_processes_one_gets_the_cell_until_it_ends(folder: Path) -> None:
    text = """
        import sys, time
        from pathlib import Path
        from study.store import claim
        held = claim(Path(sys.argv[1]))
        print(held is not None, flush=True)
        time.sleep(600 * (held is not None))
    """
    assert not is_claimed(folder)
    assert not folder.exists(), "asking creates nothing"
    processes = [script(text, folder) for _ in range(3)]
    won = [process.stdout.readline() for process in processes if process.stdout]
    assert sorted(won) == ["False\n"] * 2 + ["True\n"]
    winner = processes[won.index("True\n")]
    winner.send_signal(signal.SIGSTOP)
    assert is_claimed(folder)
    assert claim(folder) is None
    winner.send_signal(signal.SIGKILL)
    winner.wait()
    assert not is_claimed(folder)
    held = claim(folder)
    assert held is not None
    held.check()
    held.release()
