"""What the trace of a folder says about the work that was done: who trained which step."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DONE = ("complete", "diverged", "stuck")


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of all processes, in order. A killed process may have written a part of one."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


@dataclass
class Session:
    """One process's training of one cell. ``ended``: how, or None if the process was killed."""

    pid: int
    first: int
    snapshots: set[int] = field(default_factory=set)
    last: int | None = None
    ended: str | None = None

    @property
    def next(self) -> int:
        """The step after the last one that was trained."""
        return self.first if self.last is None else self.last + 1


@dataclass
class Evidence:
    """What the events of a folder show.

    - ``twice``: a line for each cell that was trained after it had ended, or by two processes;
    - ``lost``: for each kill of a cell, the steps that are trained again, up to the snapshot that
      was not yet on disk, if there is one;
    - ``in_writing``: the steps after that snapshot, which are trained again too;
    - ``after_stop``: the steps that were trained again after a stop that had time to finish.
    """

    twice: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    in_writing: list[int] = field(default_factory=list)
    after_stop: list[int] = field(default_factory=list)


def evidence(events: Iterable[dict[str, Any]]) -> Evidence:
    """Follow every cell through the events of a folder."""
    found = Evidence()
    sessions: dict[str, list[Session]] = {}
    for event in events:
        if "cell" not in event:
            continue
        cell, earlier = event["cell"], sessions.setdefault(event["cell"], [])
        if event["event"] == "begin":
            if earlier:
                _continued(found, cell, earlier, event["step"])
            earlier.append(Session(event["pid"], event["step"]))
            continue
        session = earlier[-1] if earlier else None
        if session is None or session.pid != event["pid"]:
            found.twice.append(f"{cell}: process {event['pid']} writes after another one began")
            continue
        if event["event"] == "row":
            if session.ended in DONE:
                found.twice.append(f"{cell}: step {event['step']} after its end")
            session.last = event["step"]
        elif event["event"] == "snapshot":
            session.snapshots.add(event["step"])
        else:
            session.ended = event.get("status", event["event"])
    return found


def _continued(found: Evidence, cell: str, earlier: list[Session], first: int) -> None:
    """A cell begins again at step ``first``."""
    before = earlier[-1]
    if any(session.ended in DONE for session in earlier):
        found.twice.append(f"{cell}: begun at step {first} after its end")
    again = before.next - first
    if before.ended == "interrupt":
        found.after_stop.append(max(0, again))
    elif again > 0 or before.next > before.first:
        unfinished = max((step for step in before.snapshots if step > first), default=before.next)
        found.lost.append(max(0, unfinished - first))
        found.in_writing.append(max(0, before.next - unfinished))
