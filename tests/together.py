"""Several processes that train together, as torchrun starts them, forked from the test's own."""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import queue
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from torch.distributed import TCPStore

from study import cli
from study.sweeps import processes as sharding

_SECONDS = 600
"""Far more than any test takes: the machine may be busy."""


def together(task: Callable[[int], Any], folder: Path, processes: int = 2) -> list[Any]:
    """``task(number)`` in every process at the same time: what each returns, or its exception.

    None for a process that was killed. This process has loaded torch already, so that the others
    start in little time. What each prints on stderr is in ``stderr-NUMBER`` in ``folder``.
    """
    import torch.distributed.fsdp  # noqa: F401  before the fork, so that it is loaded once

    # torchrun has a store that outlives its processes.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    started = [
        context.Process(target=_run, args=(task, number, processes, store.port, folder, results))
        for number in range(processes)
    ]
    for process in started:
        process.start()
    found: dict[int, Any] = {}
    deadline = time.monotonic() + _SECONDS
    try:
        while len(found) < processes:
            killed = {n: None for n, process in enumerate(started) if process.exitcode}
            if len(found | killed) == processes:
                break
            with contextlib.suppress(queue.Empty):
                number, result = results.get(timeout=0.2)
                found[number] = pickle.loads(result)
            assert time.monotonic() < deadline, [
                (folder / f"stderr-{number}").read_text() for number in range(processes)
            ]
    finally:
        for process in started:
            process.join(5)
            process.kill()
    return [found.get(number) for number in range(processes)]


def commands_together(before: Callable[[int], None], folder: Path, processes: int) -> list[Any]:
    """The command line in ``sys.argv`` in every process: its exit code, or its exception.

    ``before(number)`` runs in each process first.
    """

    def task(number: int) -> int:
        before(number)
        GlobalHydra.instance().clear()
        # A process of a test leaves as Python does, so that its result arrives.
        sharding.os = SimpleNamespace(**{**vars(os), "_exit": sys.exit})
        try:
            cli.main()
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    return together(task, folder, processes)


def _run(
    task: Callable[[int], Any], number: int, processes: int, port: int, folder: Path, results: Any
) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
    }
    torch.set_num_threads(1)
    sys.stderr = (folder / f"stderr-{number}").open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    faulthandler.dump_traceback_later(_SECONDS - 5, file=sys.stderr)
    try:
        result = task(number)
    except BaseException as error:
        traceback.print_exc()
        result = RuntimeError(repr(error))
    results.put((number, pickle.dumps(result)))  # a tensor by its values, not by its memory
    results.close()
    results.join_thread()
    os._exit(0)
