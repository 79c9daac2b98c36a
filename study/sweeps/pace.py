"""How long a sweep still takes, from what its cells have measured so far.

Time is scaled by cost (:mod:`study.sweeps.cost`). The first step of the first cell is left out:
it pays for imports and warm-up, which no later step does. So is the time before it, in which the
base was loaded. Until enough is measured there is no number.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from study.store import Damaged, rows_of
from study.vocabulary.statuses import ENDED

ENOUGH_SECONDS = 2.0
ENOUGH_STEPS = 2
"""A pace is that of at least this time, and of this many steps of one cell or of a whole cell."""


@dataclass(frozen=True)
class CellTime:
    """What a cell of a sweep has cost.

    - ``record``: of now; ``folder``: the cell's. ``first_step``: that of this sweep;
    - ``cost``: of all of its steps, in any unit;
    - ``before``, ``after_first``, ``now``: the shares of that cost before this sweep, after the
      first step of this sweep, and now.
    """

    record: dict[str, Any]
    folder: Path
    cost: float
    first_step: int
    before: float
    after_first: float
    now: float

    @property
    def has_begun(self) -> bool:
        """Whether it has made a step in this sweep."""
        return self.now > self.before

    @property
    def is_open(self) -> bool:
        """Whether it is still to be trained, in part at least."""
        return self.record["status"] not in ENDED


def seconds_left(
    cells: Sequence[CellTime],
    posted: str,
    now: float | None = None,
    first_step: Callable[[CellTime], float | None] | None = None,
    last_seen: Callable[[CellTime], float] | None = None,
) -> float | None:
    """The time from now until every cell has ended; None until it can be told.

    ``posted``: when the sweep began, UTC. Packs that run at the same time share the work, because
    it is compared with the time of the whole sweep.

    The rest is read from the clock and from the cells' files unless it is given: ``now``, in
    seconds of the epoch; the seconds of a cell's first step in this sweep, None if unknown; and
    when its last row was written.
    """
    begun = [cell for cell in cells if cell.has_begun]
    if not begun or not _is_enough(begun):
        return None
    first = min(begun, key=lambda cell: max(posted, began(cell.record)))
    warm_up = (first_step or _seconds_of_first_step)(first)
    if warm_up is None:
        return None
    since = _stamp(max(posted, began(first.record))) + warm_up
    until = max(map(last_seen or _last_seen, begun))
    work = sum(cell.cost * (cell.now - cell.before) for cell in begun)
    beside = [cell for cell in begun if cell is first or _share_a_fold(cell, first)]
    work -= sum(cell.cost * (cell.after_first - cell.before) for cell in beside)
    if work <= 0 or until - since < ENOUGH_SECONDS:
        return None
    left = sum(cell.cost * (1 - cell.now) for cell in cells if cell.is_open)
    now = time.time() if now is None else now
    return max(0.0, left * (until - since) / work - (now - until))


def _is_enough(begun: Sequence[CellTime]) -> bool:
    """Whether some cell has ended or has made enough steps after its first one."""
    steps = [int(cell.record.get("steps_done", -1)) - cell.first_step for cell in begun]
    return max(steps) >= ENOUGH_STEPS or any(not cell.is_open for cell in begun)


def began(record: dict[str, Any]) -> str:
    """When a cell's training began or continued last, UTC; empty if its record does not say."""
    try:
        return max([str(record["started"]), *(str(each["at"]) for each in record["resumed"])])
    except (KeyError, TypeError):
        return str(record.get("started", ""))


def _share_a_fold(cell: CellTime, other: CellTime) -> bool:
    fold = cell.record.get("fold")
    return fold is not None and fold == other.record.get("fold")


def _stamp(when: str) -> float:
    return datetime.fromisoformat(when).timestamp()


def _last_seen(cell: CellTime) -> float:
    """When the cell's last row was written, or its training ended."""
    if cell.record.get("finished") and not cell.is_open:
        return _stamp(str(cell.record["finished"]))
    try:
        return (cell.folder / "metrics.arrows").stat().st_mtime
    except OSError:  # it has ended since its record was read
        return time.time()


def _seconds_of_first_step(cell: CellTime) -> float | None:
    """The seconds that a cell's first step of this sweep took; None if its rows can't be read."""
    try:
        return _first_step(cell.folder, cell.first_step, began(cell.record))
    except (LookupError, OSError, Damaged):
        return None


@lru_cache
def _first_step(folder: Path, step: int, began: str) -> float:
    """``began`` is part of the key: a cell may begin again."""
    rows = rows_of(folder, "metrics").set_index("step")["seconds"]
    earlier = rows[rows.index < step]
    return float(rows.loc[step] - (earlier.iloc[-1] if len(earlier) else 0.0))
