"""Inside a process under test: a trace of what it trains, and a fault at one of its points."""

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .plan import VARIABLE, Plan
from .power import Disk

OF_A_PATH = ("mkdir", "unlink", "rmdir")
OF_TWO_PATHS = ("replace", "link")
OF_A_FILE = ("write", "ftruncate", "fsync", "utime")
OPERATIONS = ("open", *OF_A_PATH, *OF_TWO_PATHS, *OF_A_FILE)
"""The functions of ``os`` that change files. ``open`` counts only if it is for writing."""
WRITING = os.O_WRONLY | os.O_RDWR

POWER_LOST = 99
"""The exit code of a process whose machine lost power."""

_installed: "Instrument | None" = None


def install(plan: Plan) -> None:
    """Trace this process, and let ``plan`` happen to it. A second call does nothing."""
    global _installed
    if _installed is None:
        _installed = Instrument(plan)
        _installed.replace_calls()


def install_from_environment() -> None:
    """:func:`install` with the plan that this process inherited, if there is one."""
    if text := os.environ.get(VARIABLE):
        install(Plan.loads(text))


class Instrument:
    """Counts points, writes the trace and makes the fault happen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = Path(plan.folder)
        self.disk = Disk(self.folder) if plan.power is not None else None
        self.guard = threading.RLock()
        self._failing = False

    # The trace.

    def event(self, event: str, **about: Any) -> None:
        """Append one line. Lines of several processes do not mix: each is one append."""
        line = json.dumps({"event": event, "pid": os.getpid(), "run": self.plan.run, **about})
        self._append(self.plan.trace, line.encode() + b"\n")

    def _append(self, path: Path, content: bytes) -> int:
        """Append to a file and return where the content ends."""
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        try:
            os.write(file, content)
            return os.lseek(file, 0, os.SEEK_CUR)
        finally:
            os.close(file)

    # The fault.

    def reach(self, operation: str, path: Path, cut: Callable[[], Any] = lambda: None) -> None:
        """Called before a point. ``cut`` makes a part of the call, before the process ends in it.

        Raises ``OSError`` if the call is to fail.
        """
        at = self._append(self.plan.points, b".")
        if self.plan.listing:
            self.event("point", at=at, operation=operation, path=str(path))
        if self._failing:
            raise self._error(path)
        if at != self.plan.at:
            return
        self.event("fault", at=at, operation=operation, path=str(path))
        if self.plan.errno is not None:
            cut()
            self._failing = self.plan.for_good
            raise self._error(path)
        if self.disk is not None:
            with self.guard:
                cut()
                self.disk.after_power_loss(self.plan.after, self.plan.power or 0)
                os._exit(POWER_LOST)
        if self.plan.signal is not None:
            if self.plan.signal == signal.SIGKILL:
                cut()
            self._send(self.plan.signal)

    def _send(self, signum: int) -> None:
        if self.plan.group:
            os.killpg(0, signum)
        else:
            os.kill(os.getpid(), signum)
        if signum == signal.SIGKILL:
            time.sleep(60)  # until the signal arrives

    def _error(self, path: Path) -> OSError:
        number = self.plan.errno or 0
        return OSError(number, os.strerror(number), str(path))

    # What is replaced.

    def replace_calls(self) -> None:
        """Put this object between the store and the system, and around the methods of a cell."""
        from study.store import files
        from study.store.writer import CellWriter
        from study.sweeps.checkpointing import Checkpoints

        if self.plan.seeded_bug is not None:
            from .seeded_bugs import BUGS

            BUGS[self.plan.seeded_bug]()
        files.os = _Os(self)  # type: ignore[assignment]
        writer: Any = CellWriter
        writer.__init__ = self._begin(writer.__init__)
        writer.append = self._row(writer.append)
        writer.close = self._end(writer.close)
        writer.interrupt = self._interrupt(writer.interrupt)
        policy: Any = Checkpoints
        policy.write = self._snapshot(policy.write)
        policy.now = self._snapshot(policy.now)
        self.event("start")

    def _begin(self, original: Any) -> Any:
        @functools.wraps(original)
        def begin(writer: Any, claimed: Any, config: Any, record: Any, first_step: int = 0) -> None:
            self.event("begin", cell=claimed.folder.name, step=first_step)
            original(writer, claimed, config, record, first_step)

        return begin

    def _row(self, original: Any) -> Any:
        @functools.wraps(original)
        def append(writer: Any, table: str, rows: Any) -> None:
            if table == "metrics":
                for step in rows["step"]:
                    self.event("row", cell=writer.folder.name, step=int(step))
                if self.plan.rows:
                    self.reach("row", writer.folder)
            original(writer, table, rows)

        return append

    def _end(self, original: Any) -> Any:
        @functools.wraps(original)
        def close(writer: Any, status: str, **fields: Any) -> None:
            original(writer, status, **fields)
            self.event("end", cell=writer.folder.name, status=status)

        return close

    def _interrupt(self, original: Any) -> Any:
        @functools.wraps(original)
        def interrupt(writer: Any, **fields: Any) -> None:
            original(writer, **fields)
            self.event("interrupt", cell=writer.folder.name)

        return interrupt

    def _snapshot(self, original: Any) -> Any:
        @functools.wraps(original)
        def take(policy: Any, results: Any) -> Any:
            for result in results:
                if result is not None and not result.diverged:
                    step = int(result.metrics["step"]) + 1
                    self.event("snapshot", cell=policy.fold[result.cell].id, step=step)
            return original(policy, results)

        return take


class _Os:
    """The module ``os``, with a point before every call that changes a file."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._last, self._in_a_row = ("", Path()), 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return functools.partial(self._call, name, call) if name in OPERATIONS else call

    def _is_skipped(self, name: str, path: Path) -> bool:
        """A checkpoint has hundreds of writes: of those in a row, the 1st, 2nd, 4th, ... count."""
        self._in_a_row = self._in_a_row + 1 if (name, path) == self._last else 1
        self._last = name, path
        return self._in_a_row & (self._in_a_row - 1) > 0

    def _call(self, name: str, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
        if name == "open" and not given[1] & WRITING:
            return call(*given, **options)
        instrument = self._instrument
        path = _path_of(given[1] if name in OF_TWO_PATHS else given[0])
        inside = instrument.folder in (path, *path.parents)
        if not inside or self._is_skipped(name, path):
            return call(*given, **options)
        if instrument.disk is None:
            instrument.reach(name, path, functools.partial(_half, name, given))
            return call(*given, **options)
        with instrument.guard:  # the model needs the calls in their order
            instrument.reach(name, path, functools.partial(_half, name, given))
            instrument.disk.before(name, given)
            result = call(*given, **options)
            instrument.disk.happened(name, path, given)
            return result


def _half(call: str, given: tuple[Any, ...]) -> None:
    """Make a part of a call: half of a write, nothing of the others."""
    if call == "write":
        file, content = given
        os.write(file, bytes(content)[: len(content) // 2])


def _path_of(place: Any) -> Path:
    """The absolute path of a path or of an open file."""
    found = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else place
    return Path(os.path.abspath(found))
