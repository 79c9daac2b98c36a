"""A short sweep in which one file call fails, or at which the machine loses power."""

import errno
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .compare import differences, left_over
from .evidence import evidence, read_trace
from .instrument import POWER_LOST
from .plan import Plan
from .power import LEAST, NAMES_ONLY
from .processes import Ended, Starter
from .scenarios import SHORT_EVERY, make_folder, short_arguments, study_of

ROWS = 10
"""The rows of the short sweep, which are points too when power is lost."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
"""A full disk, a broken one, one that is mounted read-only, and a folder without rights."""


@dataclass(frozen=True)
class Point:
    """A point of the undisturbed sweep. ``kind``: the same for calls with the same purpose."""

    at: int
    operation: str
    path: str

    @property
    def kind(self) -> str:
        """The operation and the path without what is different in every process or cell."""
        path = re.sub(r"cells/[0-9a-f]{12}", "cells/ID", self.path)
        path = re.sub(r"\d+[-.0-9A-Za-z]*(?=\.partial|\.json|$)", "N", path)
        return f"{self.operation} {re.sub(r'holder.[0-9a-f]+', 'holder.N', path)}"


@dataclass
class Found:
    """What the injected faults have shown. ``wrong``: a line for each fault that was found."""

    runs: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    most_lost: int = 0

    def add(self, other: "Found") -> None:
        """Take in another one."""
        self.runs.update(other.runs)
        self.wrong.extend(other.wrong)
        self.most_lost = max(self.most_lost, other.most_lost)


class Calls:
    """Runs the short sweep with faults, in folders below ``place``."""

    def __init__(
        self, place: Path, starter: Starter | None = None, seeded_bug: str | None = None
    ) -> None:
        self.place, self.seeded_bug = place, seeded_bug
        self.starter = starter or Starter(place / "cache")
        self.arguments = short_arguments()

    @cached_property
    def undisturbed(self) -> Path:
        """The study without faults. Its trace has every call."""
        folder = make_folder(self.place / "undisturbed")
        plan = Plan(str(folder), "0", rows=False, listing=True)
        ended = self.starter.start(self.arguments, plan).wait()
        if ended.code != 0:
            raise RuntimeError(f"the undisturbed sweep ends with {ended}")
        if files := left_over(study_of(folder)):
            raise RuntimeError(f"the undisturbed sweep leaves files: {files}")
        return study_of(folder)

    @cached_property
    def points(self) -> list[Point]:
        """The file calls of the undisturbed sweep, in order."""
        folder = self.undisturbed.parents[1]
        return [
            Point(event["at"], event["operation"], str(Path(event["path"]).relative_to(folder)))
            for event in read_trace(Path(f"{folder}.trace"))
            if event["event"] == "point"
        ]

    def first_of_each_kind(self) -> list[Point]:
        """One point for each kind of call."""
        kinds: dict[str, Point] = {}
        for point in self.points:
            kinds.setdefault(point.kind, point)
        return list(kinds.values())

    # A call that fails.

    def failing(self, point: Point, number: int, for_good: bool) -> Found:
        """Let one call fail, or all from it on; then run the command again without faults."""
        name = f"{errno.errorcode[number]} {'for good ' if for_good else ''}at {point.at}"
        folder = make_folder(self.place / name)
        plan = self._plan(folder, at=point.at, errno=number, for_good=for_good)
        ended = self.starter.start(self.arguments, plan).wait()
        found = Found(Counter([f"{errno.errorcode[number]}, exit code {ended.code}"]))
        found.wrong += _wrong_end(ended)
        if ended.code == 0:
            found.wrong += differences(study_of(folder), self.undisturbed)
        else:
            found.wrong += self._completed(folder)
        return self._kept_if_wrong(found, folder, f"{name}, {point.operation} {point.path}")

    # The loss of power.

    def losing_power(self, at: int, seed: int) -> Found:
        """Lose power at a point; then run the command on what the disk may hold."""
        name = f"power {seed} at {at}"
        folder = make_folder(self.place / name)
        plan = self._plan(folder, at=at, power=seed, rows=True)
        ended = self.starter.start(self.arguments, plan).wait()
        found = Found(Counter([f"power, exit code {ended.code}"]))
        if ended.code != POWER_LOST:
            if ended.code != 0:
                found.wrong.append(f"it ends with {ended}")
            return self._kept_if_wrong(found, folder, name)
        before = read_trace(plan.trace)
        found.wrong += self._completed(plan.after)
        after = read_trace(Path(f"{plan.after}.trace"))
        work = evidence([*before, *after])
        found.wrong += work.twice
        if max(work.lost, default=0) > 2 * SHORT_EVERY:
            found.wrong.append(f"{max(work.lost)} steps lost, interval {SHORT_EVERY}")
        found.most_lost = max(
            (lost + more for lost, more in zip(work.lost, work.in_writing, strict=True)), default=0
        )
        return self._kept_if_wrong(found, folder, name)

    def _plan(self, folder: Path, **faults: object) -> Plan:
        plan = Plan(str(folder), "0", rows=False, seeded_bug=self.seeded_bug)
        return replace(plan, **faults)  # type: ignore[arg-type]

    def _completed(self, folder: Path) -> list[str]:
        """Run the command without faults. Returns a line for everything that is wrong then."""
        plan = replace(self._plan(folder), run="1")
        ended = self.starter.start(self.arguments, plan).wait()
        wrong = [] if ended.code == 0 else [f"without faults it ends with {ended}"]
        return [*wrong, *differences(study_of(folder), self.undisturbed)]

    def _kept_if_wrong(self, found: Found, folder: Path, name: str) -> Found:
        """Name the fault in every line, or delete the folder if there is none."""
        if found.wrong:
            found.wrong = [f"{line} ({name}, in {folder})" for line in found.wrong]
        else:
            for path in self.place.glob(f"{folder.name}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return found

    def fail_some(self, number: int, seed: int, jobs: int) -> Found:
        """Let calls fail: one of each kind, and others up to ``number``, all if there are fewer."""
        rng, kinds = random.Random(seed), self.first_of_each_kind()
        others = [point for point in self.points if point not in kinds]
        points = [*rng.sample(kinds, len(kinds)), *rng.sample(others, len(others))]
        cases = [
            (point, ERRORS[(turn + shift) % len(ERRORS)], (turn + shift) % 3 == 2)
            for turn in range(2 * len(ERRORS))
            for shift, point in enumerate(points)
        ]
        return self._all(self.failing, cases[:number], jobs)

    def lose_power(self, number: int, seed: int, jobs: int) -> Found:
        """Lose power so often, at points that are spread over the sweep."""
        rng = random.Random(seed)
        last = len(self.points) + ROWS
        cases = [
            (1 + (2 * turn + 1) * last // (2 * number), rng.choice([LEAST, NAMES_ONLY, turn, turn]))
            for turn in range(number)
        ]
        return self._all(self.losing_power, cases, jobs)

    def _all(self, run: Callable[..., Found], cases: Sequence[tuple[Any, ...]], jobs: int) -> Found:
        total = Found()
        with ThreadPoolExecutor(jobs) as pool:
            for found in pool.map(lambda case: run(*case), cases):
                total.add(found)
        return total


def _wrong_end(ended: Ended) -> list[str]:
    """What is wrong with the end of a run in which a call failed."""
    lines = ended.err.strip().splitlines()
    own = [line for line in lines if line.startswith("study: ")]
    if "Traceback" in ended.err:
        return [f"a traceback: {ended.err[-1500:]}"]
    if ended.code not in (0, 2):
        return [f"exit code {ended.code}: {ended.err[-500:]}"]
    if ended.code == 2 and (len(own) != 1 or lines[-1] != own[0]):
        return [f"exit code 2 with {len(own)} lines instead of 1: {ended.err[-500:]}"]
    return []
