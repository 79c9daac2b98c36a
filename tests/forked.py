"""Python processes that start in milliseconds.

Importing torch and transformers takes seconds. A server imports them once, and a process is forked
from it. The server runs nothing else, so a fork is like a new process after its imports. Tests of
the imports themselves start new processes instead.
"""

import atexit
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Self
from unittest import mock

ROOT = Path(__file__).parents[1]
STUDY = "from study.cli import main; main()"
"""The code of the console script."""
PATIENCE = 900.0
"""Seconds after which a process counts as hanging."""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)


@cache
def server() -> Any:
    """The context whose processes are forked from the server. It ends with this process.

    Results don't depend on the load with one thread, and a process with one thread can be forked.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    variables = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *inherited]),
    }
    with mock.patch.dict(os.environ, variables):  # the server takes them when it starts
        forkserver.ensure_running()
    return context


class Forked:
    """``python -c code arguments`` in ``folder`` with the variables ``environment``.

    As a context manager, it ends the process when the block ends.
    """

    def __init__(
        self, code: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.arguments = arguments
        self._said = tempfile.TemporaryDirectory()
        run = (code, tuple(arguments), folder, dict(environment), self._said.name)
        self._process = server().Process(target=_become, args=run)
        self._process.start()

    @property
    def ended(self) -> bool:
        return self._process.exitcode is not None

    @property
    def said(self) -> str:
        """What it has printed on stderr."""
        err = Path(self._said.name) / "err"
        return err.read_text() if err.exists() else ""

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds. The process must not end before that."""
        wait_for(lambda: condition() or self.ended)
        assert condition(), self.said

    def first_line(self) -> str:
        """Wait for the first line that it prints on stdout."""
        out = Path(self._said.name) / "out"
        self.wait_for(lambda: out.exists() and "\n" in out.read_text())
        return out.read_text().splitlines()[0]

    def send(self, signum: int) -> None:
        os.kill(self._process.pid, signum)

    def kill(self) -> None:
        """End it at once, if it runs."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end. Raises ``TimeoutExpired`` after :data:`PATIENCE` seconds."""
        self._process.join(PATIENCE)
        if not self.ended:
            self.kill()
            raise subprocess.TimeoutExpired(list(self.arguments), PATIENCE)
        out = (Path(self._said.name) / "out").read_text()
        return subprocess.CompletedProcess(self.arguments, self._process.exitcode, out, self.said)


def _become(
    code: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], said: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{said}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["-c", *arguments]
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as leaving:
        if not isinstance(leaving.code, int | None):
            print(leaving.code, file=sys.stderr)
        leave(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        leave(1)
    leave(0)


def leave(code: int) -> None:
    """End this process as the interpreter would: wait for threads, and run what is registered."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
