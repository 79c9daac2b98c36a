"""Start ``study`` in processes that are cheap or fresh, and see how they end.

A cheap process is forked from a server (:mod:`tests.forked`). A fresh one is the console script, as
users start it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.forked import ROOT, exit_code, inherited_path, leave, server

from .plan import VARIABLE, Plan

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PATIENCE = 180.0
"""Seconds after which a run that has not ended counts as hanging."""
HANGS = "hangs"

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals that ``study`` handles."""


def environment(cache: Path) -> dict[str, str]:
    """The variables of every process."""
    plugin = Path(__file__).parent / "plugin"
    return {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "STUDY_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join([str(plugin), str(ROOT), *inherited_path()]),
    }


@dataclass(frozen=True)
class Ended:
    """How a run ended. ``code``: negative for a signal that nobody handled; None if it hangs."""

    code: int | None
    err: str


class Running:
    """One run: the main process, and those that it starts, in a session of their own."""

    def __init__(self, plan: Plan, process: Any, pid: int) -> None:
        self.plan, self.process, self.pid = plan, process, pid

    def send(self, signum: int, group: bool) -> bool:
        """Send a signal to the main process or to all. False if the main process has ended."""
        if self.code() is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signum)
        return True

    def code(self) -> int | None:
        """The exit code of the main process; None while it runs."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def wait(self) -> Ended:
        """Wait for the main process. One that hangs is killed, with its children."""
        until = time.monotonic() + PATIENCE
        while (code := self.code()) is None and time.monotonic() < until:
            time.sleep(0.01)
        if code is None:
            self.end_all()
        err = Path(f"{self.plan.folder}.{self.plan.run}.err")
        return Ended(code, err.read_text(errors="replace") if err.exists() else "")

    def end_all(self) -> None:
        """Kill what is left of the session."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid:
                    process.kill()


class Starter:
    """Starts runs."""

    def __init__(self, cache: Path) -> None:
        self.variables = environment(cache)

    def start(self, arguments: Sequence[str], plan: Plan, fresh: bool = False) -> Running:
        """Run ``study`` with ``arguments`` in the folder of ``plan``."""
        variables = {**self.variables, VARIABLE: plan.dumps()}
        err = f"{plan.folder}.{plan.run}.err"
        if fresh:
            script = Path(sys.executable).parent / "study"
            with open(err, "w") as file:
                started = subprocess.Popen(
                    [script, *arguments],
                    cwd=plan.folder,
                    env=os.environ | variables,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            return Running(plan, started, started.pid)
        process = server().Process(target=run_forked, args=(tuple(arguments), variables, err))
        process.start()
        assert process.pid is not None
        return Running(plan, process, process.pid)


def run_forked(arguments: tuple[str, ...], variables: dict[str, str], err: str) -> None:
    """The child of the server: becomes a run of ``study``, and ends as the interpreter would."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the faults are in place
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(variables)
    plan = Plan.loads(variables[VARIABLE])
    os.chdir(plan.folder)
    file = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from .instrument import install

    install(plan)
    if plan.fork_workers:
        _fork_workers()
    sys.argv = ["study", *arguments]
    code = _code_of_main()
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)  # nothing of study runs any more
    leave(code)


def _code_of_main() -> int:
    from study.cli import main

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    except KeyboardInterrupt:  # it came before study began, which can't answer
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        main()
    except SystemExit as leaving:
        return exit_code(leaving)
    except KeyboardInterrupt:  # before study listens: the interpreter ends by the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _fork_workers() -> None:
    """Let joblib fork its workers, which else import torch for seconds."""
    from joblib.externals.loky.backend import context

    context.set_start_method("fork", force=True)


def wait_for_orphans(plans: Sequence[Plan], kill_idle: bool, seconds: float = 60.0) -> list[int]:
    """Wait until no process of the runs is left. Returns those that are left after ``seconds``.

    ``kill_idle``: kill those that use no processor.
    """
    until = time.monotonic() + seconds
    while (left := _left(plans)) and time.monotonic() < until:
        if kill_idle:
            _kill_idle(left)
        time.sleep(0.05)
    return [process.pid for process in left]


def _kill_idle(processes: Sequence[psutil.Process]) -> None:
    """Kill the processes that have used no processor in half a second."""
    before = {process: _used(process) for process in processes}
    time.sleep(0.5)
    for process in processes:
        if _used(process) == before[process]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _used(process: psutil.Process) -> float | None:
    """Seconds of the processor; None if the process has ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system
    return None


def _left(plans: Sequence[Plan]) -> list[psutil.Process]:
    """The processes whose working directory is that of one of the runs."""
    folders = {plan.folder for plan in plans}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() in folders and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
