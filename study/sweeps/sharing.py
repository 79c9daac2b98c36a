"""Processes that train the same cells share them: each one trains what no other holds.

This module imports neither torch nor pandas: a mistake in a value is found before they are
imported, which takes seconds.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from study.errors import StudyError
from study.sweeps import signals

if TYPE_CHECKING:
    from study.sweeps.cells import Cell

_POLL = 1.0
"""Seconds between two looks at cells that other processes hold."""
_LOOK = 0.2
"""Seconds between two looks for the file that asks a sweep's processes to stop."""


@dataclass(frozen=True)
class Outcome:
    """How one pass over a pack ended.

    - ``failures``: a line for each cell that failed, by its folder;
    - ``signum``: the signal that ended the pass, if one did;
    - ``mistake``: why no cell of the pack can be trained, in one line.
    """

    failures: Mapping[Path, str] = field(default_factory=dict)
    signum: int | None = None
    mistake: str | None = None


def stop_file(agenda: Path) -> Path:
    """While this file exists, every process of the sweep, on any machine, stops after its step.

    A signal would reach only processes of the sweep's own machine, and which of them train is known
    to the launcher alone.
    """
    return agenda.with_suffix(".stop")


class StopRequest:
    """Whether this process must stop after its step: a signal came, or its sweep asks for it.

    ``agenda``: the file of its sweep's agenda; None for a pack without a sweep.
    """

    def __init__(self, agenda: Path | None) -> None:
        self._file = stop_file(agenda) if agenda else None
        self._looked, self._found = -math.inf, False

    def __call__(self) -> bool:
        """It is cheap enough for every step: the sweep's file is looked for now and then."""
        if self._file and time.monotonic() - self._looked > _LOOK:
            self._found, self._looked = self._file.exists(), time.monotonic()
        return self._found or signals.asked() is not None


def train_all(cells: Sequence["Cell"], launch: Callable[[list["Cell"]], Iterable[Outcome]]) -> None:
    """Call ``launch`` with the cells to train until every cell has results, of whichever process.

    ``launch`` makes one pass: it leaves out cells that other processes hold. Those are waited for.
    A cell that has failed here is not tried again.

    Raises :class:`StudyError` naming the first failure, and :class:`~study.sweeps.signals.Stopped`
    if a signal ended a pass.
    """
    failures: dict[Path, str] = {}
    todo = _left(cells, failures)
    first = len(todo)
    while todo:
        free = _free(todo)
        for outcome in launch(free) if free else ():
            failures |= outcome.failures
            signum = signals.asked() or outcome.signum
            if signum is not None:
                raise signals.Stopped(signum)
            if outcome.mistake:
                raise StudyError(outcome.mistake)
        left = _left(todo, failures)
        if free and len(left) == len(todo):  # others were faster: don't launch in a tight loop
            time.sleep(_POLL)
        todo = left
    if failures:
        line = next(iter(failures.values()))
        raise StudyError(f"{len(failures)} of {first} cells failed; {line}")


def _left(cells: Sequence["Cell"], failures: Mapping[Path, str]) -> list["Cell"]:
    """The distinct cells without results that have not failed here."""
    distinct = {cell.folder: cell for cell in cells if cell.folder not in failures}
    return [cell for cell in distinct.values() if not cell.done]


def _free(cells: Sequence["Cell"]) -> list["Cell"]:
    """The cells that no process holds. Waits while others hold all of them."""
    from study.store.lock import is_claimed

    told = False
    while cells:
        free = [cell for cell in cells if not is_claimed(cell.folder)]
        if free:
            return free
        if not told:
            what = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            signals.say(f"study: waiting for {what}, which another process trains")
            told = True
        time.sleep(_POLL)
        cells = [cell for cell in cells if not cell.done]
    return []
