"""Processes that train the same cells share them: each one trains what no other holds.

Imports no torch, which takes seconds: a mistake in a value is found before.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from study.errors import StudyError
from study.store import is_claimed
from study.sweeps import signals
from study.sweeps.progress import count_noun, stop_file

if TYPE_CHECKING:
    from study.sweeps.cells import Cell

_POLL = 1.0
"""Seconds between two looks at cells that other processes hold."""
_LOOK = 0.2
"""Seconds between two looks for the file that asks a sweep's processes to stop."""


def count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def follows() -> bool:
    """Whether this process does as process 0 of torchrun says."""
    return count() > 1 and os.environ["RANK"] != "0"


def local_number() -> int:
    """The number of this process among those that torchrun has started on this machine."""
    return int(os.environ["LOCAL_RANK"])


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


class StopRequest:
    """Whether this process must stop after its step: a signal came, or its sweep asks for it.

    ``posted``: the file of its sweep; None for a pack without a sweep.
    """

    def __init__(self, posted: Path | None) -> None:
        self._file = stop_file(posted) if posted else None
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
    distinct = {cell.folder: cell for cell in cells}.values()
    todo = [cell for cell in distinct if not cell.done]
    first, told = len(todo), False
    while todo:
        free = [cell for cell in todo if not is_claimed(cell.folder)]
        if not free and not told:
            cells_held = count_noun(len(todo), "cell")
            signals.say(f"study: waiting for {cells_held} that another process trains")
            told = True
        for outcome in launch(free) if free else ():
            failures |= outcome.failures
            signum = signals.asked() or outcome.signum
            if signum is not None:
                raise signals.current().stopped(signum)
            if outcome.mistake:
                raise StudyError(outcome.mistake)
        left = [cell for cell in todo if cell.folder not in failures and not cell.done]
        if len(left) == len(todo):  # others hold them, or were faster
            time.sleep(_POLL)
        todo = left
    if failures:
        line = next(iter(failures.values()))
        raise StudyError(f"{len(failures)} of {first} cells failed; {line}")
