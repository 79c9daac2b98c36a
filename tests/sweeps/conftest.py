"""Sweeps in processes of their own, forked from the tests: torch is imported already."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from joblib.externals.loky import reusable_executor

PATIENCE = 600.0  # seconds after which a process that has not ended hangs


@dataclass
class Process:
    """A forked run of ``study``. ``err``: the file with its stderr."""

    pid: int
    err: Path
    code: int | None = None

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def has_ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self) -> int:
        """Its exit code; negative for a signal that it did not handle."""
        wait_for(self.has_ended)
        assert self.code is not None
        return self.code

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds. The process must not end before that."""
        wait_for(lambda: condition() or self.has_ended())
        assert condition(), self.said

    @property
    def said(self) -> str:
        return self.err.read_text()


Begin = Callable[..., Process]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "it hangs"
        time.sleep(0.01)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """``begin("train", "-m", ..., first=patch)`` starts ``study`` in ``tmp_path``.

    ``first``: called in the new process before the command.
    """
    import transformers.optimization  # noqa: F401  (the first step imports it)

    monkeypatch.chdir(tmp_path)
    begun: list[Process] = []

    def start(*arguments: str, first: Callable[[], object] = lambda: None) -> Process:
        err = tmp_path / f"{len(begun)}.err"
        err.touch()
        pid = os.fork()
        if not pid:
            _run(arguments, first, err)
        begun.append(Process(pid, err))
        return begun[-1]

    yield start
    for process in begun:
        if not process.has_ended():
            process.send(signal.SIGKILL)
            process.wait()


def _run(arguments: tuple[str, ...], first: Callable[[], object], err: Path) -> None:
    """Be the new process; never returns."""
    from hydra.core.global_hydra import GlobalHydra

    from study import cli

    code = 99
    try:
        file = os.open(err, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["study", *arguments]
        torch.set_num_threads(1)
        GlobalHydra.instance().clear()
        # Workers that an earlier test started are not this process's: waiting for them hangs.
        reusable_executor._executor = None
        first()
        cli.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
