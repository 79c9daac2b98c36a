"""The states of a cell: whether a sweep trains it again, and which of its steps are used."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Status:
    """- ``has_ended``: no process trains it, and it did not lose its process;
    - ``can_resume``: a sweep continues it from its checkpoint, if it has one;
    - ``is_done``: a sweep does not train it again, because it would end in the same way;
    - ``ended_at``: the field of its record with the first step whose numbers are not used. Empty if
      all of its steps are used;
    - ``note``: what happened at that step, with a place for it;
    - ``fits``: which of its steps the fits use. Empty if it needs no explanation.
    """

    symbol: str
    colour: Literal["green", "blue", "yellow", "red"]
    has_ended: bool = False
    can_resume: bool = False
    is_done: bool = False
    ended_at: str = ""
    note: str = ""
    fits: str = ""


STATUSES = {
    "complete": Status("●", "green", has_ended=True, is_done=True),
    "running": Status("◐", "blue", can_resume=True, fits="Fits use the steps so far."),
    "interrupted": Status(
        "■",
        "yellow",
        can_resume=True,
        fits="Fits use the steps so far. Rerun the `study train` command to resume.",
    ),
    "diverged": Status(
        "✕",
        "red",
        has_ended=True,
        is_done=True,
        ended_at="diverged_step",
        note="not finite at step {:.0f}",
        fits="Fits use the steps before a value was not finite.",
    ),
    "stuck": Status(
        "◆",
        "red",
        has_ended=True,
        is_done=True,
        ended_at="stuck_step",
        note="no gradient from step {:.0f}",
        fits="From some step on, the gradient was zero and the loss did not change. Fits use the "
        "steps before it, and no final loss is reported.",
    ),
    "failed": Status("▲", "red", has_ended=True, fits="Fits use the steps before the failure."),
    "unreadable": Status(
        "?",
        "red",
        fits="Its files are damaged, and nothing uses them. The same `study train` command moves "
        "them aside and trains it again.",
    ),
}
"""Every state, by name.

``interrupted``: stopped by a signal or a full disk, or recorded as running without a process.
``unreadable``: its record or a table is missing or damaged; it is never recorded.
"""

ENDED = tuple(name for name, status in STATUSES.items() if status.has_ended)
RESUMABLE = tuple(name for name, status in STATUSES.items() if status.can_resume)
DONE = tuple(name for name, status in STATUSES.items() if status.is_done)
BROKEN = tuple(name for name, status in STATUSES.items() if status.ended_at)
"""Cells whose numbers count only up to some step."""
END_COLUMNS = tuple(STATUSES[name].ended_at for name in BROKEN)


def end_step(cell: Mapping[Any, Any]) -> float:
    """The first step of a row of ``cells`` whose numbers are not used; infinity if all are used,
    0 if it is unknown."""
    status = STATUSES.get(str(cell["status"]))
    column = status.ended_at if status else ""
    if not column:
        return math.inf
    step = float(cell.get(column) or 0)
    return 0.0 if math.isnan(step) else step


def note(cell: Mapping[Any, Any]) -> str:
    """How a row of ``cells`` ended, for a reader: its error, or the event and its step."""
    if isinstance(cell.get("error"), str):
        return str(cell["error"])
    status = STATUSES.get(str(cell["status"]))
    return status.note.format(end_step(cell)) if status else ""
