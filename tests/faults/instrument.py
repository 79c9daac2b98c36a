"""Inside a process under test: a trace of what it trains, and a fault at one of its points."""

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .power import Disk

OF_A_PATH = ("mkdir", "unlink", "rmdir")
OF_A_FILE = ("write", "ftruncate", "fsync")
OPERATIONS = ("open", "replace", *OF_A_PATH, *OF_A_FILE)
"""The functions of ``os`` that change files. ``open`` counts only if it is for writing."""
WRITING = os.O_WRONLY | os.O_RDWR
POWER_LOST = 99
"""The exit code of a process whose machine lost power."""


@dataclass(frozen=True)
class Plan:
    """What a process is to suffer at point ``at``, counted from 1; at most one of these.

    A point is a call that changes a file of the store or, with ``rows``, a row of metrics.

    - ``signal``: the process sends this signal to itself. The call is not made; a write is cut;
    - ``errno``: the call fails with this error and, with ``for_good``, so do all later ones;
    - ``power``: the machine loses power. What a disk may then hold is written to the folder
      ``after``, drawn with the seed ``power``.

    ``folder``: where the run trains; its trace is beside it. ``listing``: write every point there.
    """

    folder: str
    run: str = "0"
    at: int | None = None
    signal: int | None = None
    errno: int | None = None
    for_good: bool = False
    power: int | None = None
    listing: bool = False
    rows: bool = True

    @property
    def trace(self) -> Path:
        """The events of all runs in ``folder``, one JSON object a line."""
        return Path(f"{self.folder}.trace")

    @property
    def after(self) -> Path:
        """The folder as a disk may hold it after the loss of power."""
        return Path(f"{self.folder}.after")

    def dumps(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Plan":
        """The plan that :meth:`dumps` wrote."""
        return cls(**json.loads(text))


def install(plan: Plan) -> None:
    """Trace this process, and let ``plan`` happen to it."""
    from study.store import files
    from study.store.writer import CellWriter

    instrument = Instrument(plan)
    files.os = _Os(instrument)  # type: ignore[assignment]
    writer: Any = CellWriter
    begin, append, close, interrupt = (
        writer.__init__,
        writer.append,
        writer.close,
        writer.interrupt,
    )

    def traced_begin(self: Any, claimed: Any, config: Any, record: Any, first: int = 0) -> None:
        instrument.event("begin", cell=claimed.folder.name, step=first)
        begin(self, claimed, config, record, first)

    def traced_append(self: Any, table: str, rows: Any) -> None:
        if table == "metrics":
            for step in rows["step"]:
                instrument.event("row", cell=self.folder.name, step=int(step))
            if plan.rows:
                instrument.reach("row", self.folder)
        append(self, table, rows)

    def traced_close(self: Any, status: str, **fields: Any) -> None:
        close(self, status, **fields)
        instrument.event("end", cell=self.folder.name)

    def traced_interrupt(self: Any, **fields: Any) -> None:
        interrupt(self, **fields)
        instrument.event("interrupt", cell=self.folder.name)

    writer.__init__, writer.append = traced_begin, traced_append
    writer.close, writer.interrupt = traced_close, traced_interrupt


class Instrument:
    """Counts points, writes the trace and makes the fault happen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = Path(plan.folder)
        self.disk = Disk(self.folder) if plan.power is not None else None
        self.guard = threading.RLock()
        self._points = 0
        self._failing = False

    def event(self, event: str, **about: Any) -> None:
        """Append one line. Lines of several processes do not mix: each is one append."""
        line = json.dumps({"event": event, "pid": os.getpid(), "run": self.plan.run, **about})
        file = os.open(self.plan.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        try:
            os.write(file, line.encode() + b"\n")
        finally:
            os.close(file)

    def reach(self, operation: str, path: Path, cut: Callable[[], Any] = lambda: None) -> None:
        """Called before a point. ``cut`` makes a part of the call, before the process ends in it.

        Raises ``OSError`` if the call is to fail.
        """
        with self.guard:
            self._points += 1
            at = self._points
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
            os.kill(os.getpid(), self.plan.signal)
            if self.plan.signal == signal.SIGKILL:
                time.sleep(60)  # until the signal arrives

    def _error(self, path: Path) -> OSError:
        number = self.plan.errno or 0
        return OSError(number, os.strerror(number), str(path))


class _Os:
    """The module ``os``, with a point before every call that changes a file."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return functools.partial(self._call, name, call) if name in OPERATIONS else call

    def _call(self, name: str, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
        if name == "open" and not given[1] & WRITING:
            return call(*given, **options)
        instrument = self._instrument
        path = _path_of(given[1] if name == "replace" else given[0])
        if instrument.folder not in (path, *path.parents):
            return call(*given, **options)
        half = functools.partial(_half, name, given)
        if instrument.disk is None:
            instrument.reach(name, path, half)
            return call(*given, **options)
        with instrument.guard:  # the model needs the calls in their order
            instrument.reach(name, path, half)
            instrument.disk.before(name, given)
            result = call(*given, **options)
            instrument.disk.happened(name, path)
            if name == "replace":
                instrument.disk.moved(Path(given[0]), path)
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
