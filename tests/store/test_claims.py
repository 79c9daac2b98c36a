"""A cell has one writer, on one machine and on several, however processes end."""

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.store import CellWriter, ClaimLost, StorageError, claim, claims, is_claimed, read_cell

ROOT = Path(__file__).parents[2]
CONFIG = {
    "adapter": {"rank": 8, "scaling": "rslora", "alpha": 16.0},
    "optimizer": {"name": "adamw", "lr": 1e-4},
    "train": {"steps": 3},
    "data": {"seed": 0},
    "seed": 0,
}
RECORD = {"cell_id": "abc", "study": "s", "model": "tiny", "data": "pydoc", "gamma": 0.5}
RECORD |= {"config": CONFIG}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cells" / "abc"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``on("a")``: from now on, this process is on the machine ``a``, and locks of files are
    invisible to other machines.
    """

    def switch(machine: str) -> None:
        monkeypatch.setattr(claims, "boot_id", lambda: machine)
        monkeypatch.setattr(claims, "_flock", lambda file: True)
        monkeypatch.setattr(claims, "probe", lambda path: False)

    return switch


def age(folder: Path, seconds: float) -> None:
    """Make the last heartbeat of every holder so many seconds older."""
    for holder in folder.glob("holder.*"):
        then = holder.stat().st_mtime - seconds
        os.utime(holder, (then, then))


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a Python text in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    assert names(folder) == ["lock"]
    again = claim(folder)
    assert again is not None
    again.release()


def test_a_claim_ends_with_its_process(folder: Path) -> None:
    text = """
        import os, signal, sys
        from pathlib import Path
        from study.store import claim
        assert claim(Path(sys.argv[1])) is not None
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = script(text, folder)
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    assert names(folder) == ["holder.1", "lock"]
    assert not is_claimed(folder)
    held = claim(folder)
    assert held is not None
    assert names(folder) == ["holder.2", "lock"]
    held.release()


def test_a_stopped_process_keeps_its_claim_on_its_machine(folder: Path) -> None:
    """It holds the lock. That its heartbeat is old plays no part."""
    text = """
        import sys, time
        from pathlib import Path
        from study.store import claim
        held = claim(Path(sys.argv[1]))
        print("held", flush=True)
        time.sleep(60)
    """
    process = script(text, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    age(folder, 1000)
    assert claim(folder) is None
    process.kill()
    process.wait()
    held = claim(folder)
    assert held is not None
    held.release()


def test_a_child_process_neither_holds_nor_ends_a_claim(folder: Path) -> None:
    held = claim(folder)
    assert held is not None
    child = os.fork()
    if not child:
        lost = held.is_lost
        held.release()
        time.sleep(0.5)
        os._exit(0 if lost else 1)
    time.sleep(0.1)
    held.check()
    assert claim(folder) is None
    held.release()
    again = claim(folder)
    assert again is not None, "the child does not keep the lock"
    again.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_another_machine_waits_for_the_heartbeat_to_stop(
    folder: Path, on: Callable[[str], None]
) -> None:
    on("a")
    first = claim(folder)
    assert first is not None
    on("b")
    assert claim(folder) is None
    assert is_claimed(folder)
    age(folder, claims.STALE_AFTER - 10)
    assert claim(folder) is None
    age(folder, 20)
    assert not is_claimed(folder)
    second = claim(folder)
    assert second is not None
    assert first.is_lost
    with pytest.raises(ClaimLost, match="cell abc now belongs to another process"):
        first.check()
    first.beat()
    first.release()
    second.check()
    second.release()
    assert names(folder) == ["lock"]


def test_a_writer_stops_when_another_machine_has_its_cell(
    folder: Path, on: Callable[[str], None]
) -> None:
    def rows(step: int, loss: float) -> pd.DataFrame:
        return pd.DataFrame([{"step": step, "tokens": 1, "loss": loss}])

    on("a")
    first = CellWriter.open(folder, "", RECORD)
    first.append("metrics", rows(0, 1.0))
    age(folder, 200)
    on("b")
    second = CellWriter.open(folder, "", RECORD)
    second.append("metrics", rows(0, 2.0))
    for act in (lambda: first.append("metrics", rows(1, 1.0)), first.sync):
        with pytest.raises(ClaimLost):
            act()
    with pytest.raises(ClaimLost):
        first.close("complete")
    first.interrupt()
    second.close("complete")
    record = read_cell(folder)
    assert record is not None
    assert record["status"] == "complete"
    assert pd.read_parquet(folder / "metrics.parquet")["loss"].to_list() == [2.0]


def test_of_many_machines_one_takes_a_stale_claim(
    folder: Path, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread is a machine."""
    on("")
    monkeypatch.setattr(claims, "boot_id", lambda: threading.current_thread().name)
    earlier = claim(folder)
    assert earlier is not None
    taken = 0
    for _ in range(30):
        age(folder, 200)
        start, won = threading.Barrier(8), []

        def contend(start: threading.Barrier = start, won: list[Any] = won) -> None:
            start.wait()
            if held := claim(folder):
                won.append(held)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) <= 1, "two may stop each other, but never both go on"
        if won:
            assert earlier.is_lost
            earlier = won[0]
        taken += len(won)
    assert taken > 0


def test_two_machines_in_two_processes(folder: Path) -> None:
    """The second process has another boot id, and the first one's lock is invisible to it."""
    text = """
        import sys, time
        from pathlib import Path
        from study.store import claim, claims
        claims.boot_id = lambda: "machine of the test"
        claims._flock = lambda file: True
        claims.HEARTBEAT = 0.05
        held = claim(Path(sys.argv[1]))
        print("held" if held else "refused", flush=True)
        time.sleep(float(sys.argv[2]))
        print("lost" if held and held.is_lost else "kept", flush=True)
    """
    mine = claim(folder)
    assert mine is not None
    other = script(text, folder, 0)
    assert other.communicate()[0] == "refused\nkept\n"
    age(folder, 200)
    other = script(text, folder, 1.0)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert mine.is_lost
    mine.release()
    assert claim(folder) is None, "its heart beats"
    assert other.communicate()[0] == "kept\n"
    age(folder, 200)
    mine = claim(folder)
    assert mine is not None
    mine.release()


def contend_for_ever(folder: Path) -> None:
    """Claim and release. A second lock, held meanwhile, tells if two processes have the claim."""
    witness = os.open(folder.parent / "witness", os.O_RDWR | os.O_CREAT)
    while True:
        if held := claim(folder):
            try:
                fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (folder.parent / "shared").touch()
            held.check()
            time.sleep(random.random() * 0.01)
            held.check()
            with (folder.parent / "claims").open("a") as file:
                file.write("x")
            fcntl.flock(witness, fcntl.LOCK_UN)
            held.release()


def forked(act: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            act()
        os._exit(1)
    return child


def test_processes_that_are_killed_never_share_a_cell(folder: Path) -> None:
    folder.mkdir(parents=True)
    contenders = [forked(lambda: contend_for_ever(folder)) for _ in range(4)]
    draw = random.Random(0)
    for _ in range(60):
        time.sleep(0.02 + 0.05 * draw.random())
        victim = draw.randrange(len(contenders))
        os.kill(contenders[victim], signal.SIGKILL)
        ended = os.waitpid(contenders[victim], 0)[1]
        assert os.waitstatus_to_exitcode(ended) == -signal.SIGKILL, "a process lost its claim"
        contenders[victim] = forked(lambda: contend_for_ever(folder))
    for child in contenders:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not (folder.parent / "shared").exists()
    assert (folder.parent / "claims").stat().st_size > 20


def test_one_thread_renews_all_claims(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_THREADS", [])
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    before = threading.active_count()
    held = [claim(folder / str(n)) for n in range(3)]
    assert threading.active_count() == before + 1
    for n in range(3):
        age(folder / str(n), 100)
    deadline = time.monotonic() + 10
    while any(time.time() - (folder / str(n) / "holder.1").stat().st_mtime > 50 for n in range(3)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for each in held:
        assert each is not None
        each.release()


def test_a_claim_is_lost_with_its_folder(folder: Path) -> None:
    held = claim(folder)
    assert held is not None
    folder.rename(folder.with_name("moved"))
    assert held.is_lost
    again = claim(folder)
    assert again is not None, "the lock of the moved folder is another file"
    held.release()
    again.check()
    again.release()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="choose a folder that you may write"):
        claim(tmp_path / "cell")
    tmp_path.chmod(0o700)


def test_a_pipe_in_place_of_the_lock(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.mkfifo(folder / "lock")
    with pytest.raises(StorageError, match="lock: "):
        claim(folder)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "cell").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        claim(tmp_path / "cell")
    with pytest.raises(StorageError, match="Not a directory"):
        claim(tmp_path / "cell" / "abc")


def test_a_file_system_without_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder alone decides, even between processes of one machine."""
    monkeypatch.setattr(claims, "_flock", lambda file: False)
    monkeypatch.setattr(claims, "probe", lambda path: None)
    held = claim(folder)
    assert held is not None
    assert claim(folder) is None
    assert is_claimed(folder)
    age(folder, 200)
    again = claim(folder)
    assert again is not None
    assert held.is_lost
    again.release()
