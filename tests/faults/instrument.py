"""Inside a process under test: a fault at one of the calls that change files."""

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .power import Disk

OPERATIONS = ("open", "replace", "mkdir", "unlink", "rmdir", "write", "ftruncate", "fsync")
"""The functions of ``os`` that change files. ``open`` counts only if it is for writing."""
WRITING = os.O_WRONLY | os.O_RDWR
POWER_LOST = 99
"""The exit code of a process whose machine lost power."""


@dataclass(frozen=True)
class Plan:
    """What a process is to suffer at its call ``at``, counted from 1; at most one of these.

    - ``signal``: the process sends this signal to itself. The call is not made; a write is cut;
    - ``errno``: the call fails with this error and, with ``for_good``, so do all later ones;
    - ``power``: the machine loses power. What a disk may then hold is written to the folder
      ``after``, drawn with the seed ``power``.

    ``folder``: where the run trains. ``listing``: write every call to ``calls``, a JSON object a
    line.
    """

    folder: str
    at: int | None = None
    signal: int | None = None
    errno: int | None = None
    for_good: bool = False
    power: int | None = None
    listing: bool = False

    @property
    def calls(self) -> Path:
        """The calls of an undisturbed run."""
        return Path(f"{self.folder}.calls")

    @property
    def after(self) -> Path:
        """The folder as a disk may hold it after the loss of power."""
        return Path(f"{self.folder}.after")


def run(plan: dict[str, Any]) -> None:
    """Be a run of ``study``, to which ``plan`` happens."""
    from study.cli import main
    from study.store import files

    files.os = Instrument(Plan(**plan))
    sys.argv[0] = "study"
    try:
        main()
    except KeyboardInterrupt:  # before study listens: the interpreter ends by the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


class Instrument:
    """Takes the place of ``os`` in ``study.store.files``, and makes the fault happen."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._folder = plan, Path(plan.folder)
        self._disk = Disk(self._folder) if plan.power is not None else None
        self._guard = threading.RLock()
        self._count, self._failing = 0, False

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return functools.partial(self._call, name, call) if name in OPERATIONS else call

    def _call(self, name: str, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
        if name == "open" and not given[1] & WRITING:
            return call(*given, **options)
        path = _path_of(given[1] if name == "replace" else given[0])
        if self._folder not in (path, *path.parents):
            return call(*given, **options)
        with self._guard:  # the model of a disk needs the calls in their order
            self._reach(name, path, given)
            if self._disk is None:
                return call(*given, **options)
            self._disk.before(name, given)
            result = call(*given, **options)
            self._disk.happened(name, path, given)
            return result

    def _reach(self, name: str, path: Path, given: tuple[Any, ...]) -> None:
        """Called before a call. Raises ``OSError`` if it is to fail."""
        plan = self._plan
        self._count += 1
        if plan.listing:
            event = {"at": self._count, "operation": name, "path": str(path)}
            with plan.calls.open("a") as file:
                file.write(json.dumps(event) + "\n")
        if self._failing or (self._count == plan.at and plan.errno is not None):
            self._failing = plan.for_good
            number = plan.errno or 0
            _half(name, given)
            raise OSError(number, os.strerror(number), str(path))
        if self._count != plan.at:
            return
        if self._disk is not None:
            _half(name, given)
            self._disk.after_power_loss(plan.after, plan.power or 0)
            os._exit(POWER_LOST)
        if plan.signal is not None:
            if plan.signal == signal.SIGKILL:
                _half(name, given)
            os.kill(os.getpid(), plan.signal)
            if plan.signal == signal.SIGKILL:
                time.sleep(60)  # until the signal arrives


def _half(call: str, given: tuple[Any, ...]) -> None:
    """Make a part of a call: half of a write, nothing of the others."""
    if call == "write":
        file, content = given
        os.write(file, bytes(content)[: len(content) // 2])


def _path_of(place: Any) -> Path:
    """The absolute path of a path or of an open file."""
    found = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else place
    return Path(os.path.abspath(found))
