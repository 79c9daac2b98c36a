"""Kills, failing file calls and losses of power. Afterwards the same command completes the sweep,
and its results are those of an undisturbed one.
"""

import errno
import json
import random
import re
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.forked import ROOT

from .compare import differences
from .instrument import POWER_LOST, Plan
from .power import LEAST, NAMES_ONLY
from .sweeps import EVERY, Ended, Running, arguments, make_folder, study_of

SIGNALS = {signal.SIGKILL: 3, signal.SIGTERM: 1, signal.SIGINT: 1}
"""How often each signal is drawn."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
"""A full disk, a broken one, one that is mounted read-only, and a folder without rights."""
LAST_ROUNDS = 4
"""The most rounds without kills that a sweep may take to complete."""


@dataclass
class Found:
    """What the faults have shown. ``wrong``: a line for each thing that is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0

    def add(self, other: "Found") -> None:
        """Take in another one. ``lost``: the most steps that one fault cost."""
        self.counts.update(other.counts)
        self.wrong += other.wrong
        self.lost = max(self.lost, other.lost)


class Sweep:
    """A sweep, in folders below ``place``: once undisturbed, then with faults."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.place, self.arguments = name, place, arguments(name)

    @cached_property
    def undisturbed(self) -> Path:
        """The study without faults. Its trace has every point."""
        folder = make_folder(self.place / f"undisturbed {self.name}")
        ended = Running(self.arguments, Plan(str(folder), listing=True)).wait()
        if ended.code != 0:
            raise RuntimeError(f"the undisturbed sweep ends with {ended}")
        return study_of(folder)

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The points of the undisturbed sweep, in order."""
        trace = read_trace(Path(f"{self.undisturbed.parents[1]}.trace"))
        return [event for event in trace if event["event"] == "point"]

    def kinds(self) -> list[dict[str, Any]]:
        """One file call for each kind: by operation and path, whatever differs between cells."""
        found: dict[str, dict[str, Any]] = {}
        for point in self.points:
            path = re.sub(r"cells/[0-9a-f]{12}", "cells/ID", point["path"])
            path = re.sub(r"\d+[-.0-9A-Za-z]*(?=\.partial|\.json|$)", "N", path)
            if point["operation"] != "row":
                found.setdefault(f"{point['operation']} {path}", point)
        return list(found.values())

    def kill(self, seed: int) -> Found:
        """Kill one or two processes that share the sweep, up to three times; then complete it."""
        rng, found = random.Random(f"{seed}/{self.name}"), Found()
        folder = make_folder(self.place / f"kill {seed} {self.name}")
        runs = 0
        for _ in range(rng.randint(1, 3)):
            running = []
            for _ in range(rng.choice([1, 2, 2])):
                runs += 1
                [signum] = rng.choices(list(SIGNALS), list(SIGNALS.values()))
                # Early points more often: a run that shares or continues a sweep has fewer of them.
                at = 1 + int(len(self.points) * rng.random() ** 2)
                plan = Plan(str(folder), str(runs), at=at, signal=int(signum))
                running.append((signum, Running(self.arguments, plan)))
                time.sleep(rng.random() * 0.2)
            if rng.random() < 0.25:  # from outside, at any moment
                time.sleep(rng.random())
                running[0][1].send(running[0][0])
            for signum, each in running:
                found.add(self._end_of_killed(each.wait(), signum))
        for _ in range(LAST_ROUNDS):
            ended = Running(self.arguments, Plan(str(folder), "last")).wait()
            if ended.code == 0:
                break
            found.wrong.append(f"without kills it ends with {ended}")
        return self._checked(found, folder, read_trace(Path(f"{folder}.trace")))

    def _end_of_killed(self, ended: Ended, signum: int) -> Found:
        name = signal.Signals(signum).name
        found = Found(Counter([f"{name}, exit code {ended.code}"]))
        if ended.code not in (0, 128 + signum, -signum):
            found.wrong.append(f"it ends with {ended} after {name}")
        if ended.code != -signal.SIGINT and (trace := traceback_of_study(ended.err)):
            found.wrong.append(f"a traceback: {trace}")
        if ended.code == 128 + signum:
            lines = ended.err.splitlines()
            commands = [line.partition("continue with: ")[2] for line in lines]
            if ["study", *self.arguments] not in map(shlex.split, commands):
                found.wrong.append(f"no line that continues: {ended.err[-300:]!r}")
        return found

    def fail(self, at: int, number: int, for_good: bool) -> Found:
        """Let one call fail, or all from it on; then run the command again without faults."""
        name = f"{errno.errorcode[number]} {'for good ' if for_good else ''}at {at}"
        folder = make_folder(self.place / name)
        plan = Plan(str(folder), at=at, errno=number, for_good=for_good)
        ended = Running(self.arguments, plan).wait()
        found = Found(Counter([f"exit code {ended.code}"]), _wrong_end(ended))
        if ended.code != 0:
            found.wrong += self._complete(folder)
        return self._checked(found, folder)

    def lose_power(self, at: int, seed: int) -> Found:
        """Lose power at a point; then run the command on what the disk may hold."""
        folder = make_folder(self.place / f"power {seed} at {at}")
        plan = Plan(str(folder), at=at, power=seed)
        ended = Running(self.arguments, plan).wait()
        found = Found(Counter([f"exit code {ended.code}"]))
        if ended.code != POWER_LOST:
            found.wrong += [] if ended.code == 0 else [f"it ends with {ended}"]
            return self._checked(found, folder)
        found.wrong += self._complete(plan.after)
        trace = read_trace(plan.trace) + read_trace(Path(f"{plan.after}.trace"))
        return self._checked(found, plan.after, trace)

    def _complete(self, folder: Path) -> list[str]:
        ended = Running(self.arguments, Plan(str(folder), "last")).wait()
        return [] if ended.code == 0 else [f"without faults it ends with {ended}"]

    def _checked(self, found: Found, folder: Path, trace: Sequence[dict[str, Any]] = ()) -> Found:
        """Compare the results and read the trace. Deletes the folder if nothing is wrong."""
        found.wrong += differences(study_of(folder), self.undisturbed)
        twice, lost = work(trace)
        found.wrong += twice
        found.lost = max(lost, default=0)
        if found.lost > 2 * EVERY:  # since the last checkpoint, and while it was written
            found.wrong.append(f"{found.lost} steps lost, a checkpoint every {EVERY}")
        if found.wrong:
            found.wrong = [f"{line} ({folder})" for line in found.wrong]
        else:
            for path in self.place.glob(f"{folder.name.removesuffix('.after')}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return found


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of all processes, in order. A killed process may have written a part of one."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def work(events: Iterable[dict[str, Any]]) -> tuple[list[str], list[int]]:
    """What a trace says: a line for each cell trained twice, and the steps that each kill cost."""
    twice, lost = [], []
    next_step: dict[str, int] = {}
    holder: dict[str, int] = {}
    ended: set[str] = set()
    for event in events:
        if "cell" not in event:
            continue
        cell, kind = event["cell"], event["event"]
        if cell in ended and kind in ("begin", "row"):
            twice.append(f"{cell}: {kind} at step {event['step']} after its end")
        if kind == "begin":
            lost.append(max(0, next_step.get(cell, 0) - event["step"]))
            next_step[cell], holder[cell] = event["step"], event["pid"]
        elif holder.get(cell) != event["pid"]:
            twice.append(f"{cell}: process {event['pid']} writes after another one began")
        elif kind == "row":
            next_step[cell] = event["step"] + 1
        elif kind == "end":
            ended.add(cell)
    return twice, lost


def traceback_of_study(err: str) -> str:
    """The end of ``err`` if it has a traceback through the package."""
    ours = re.compile(rf'File "{re.escape(str(ROOT))}/(study|hydra_plugins)/')
    return err[-1500:] if "Traceback" in err and ours.search(err) else ""


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


def failing_cases(sweep: Sweep, number: int, seed: int) -> list[tuple[int, int, bool]]:
    """Calls that fail, with their errors: one of each kind, and others up to ``number``."""
    rng, kinds = random.Random(seed), sweep.kinds()
    calls = [point for point in sweep.points if point["operation"] != "row"]
    others = [point for point in calls if point not in kinds]
    points = [*rng.sample(kinds, len(kinds)), *rng.sample(others, len(others))]
    errors = [(ERRORS[turn % len(ERRORS)], turn % 3 == 2) for turn in range(len(points))]
    cases = [(point["at"], *how) for point, how in zip(points, errors, strict=True)]
    return cases[:number]


def power_cases(sweep: Sweep, number: int, seed: int) -> list[tuple[int, int]]:
    """Losses of power at points that are spread over the sweep, with what is kept."""
    rng, last = random.Random(seed), len(sweep.points)
    return [
        (1 + (2 * turn + 1) * last // (2 * number), rng.choice([LEAST, NAMES_ONLY, turn, turn]))
        for turn in range(number)
    ]


def run_all(act: Callable[..., Found], cases: Iterable[tuple[Any, ...]], jobs: int) -> Found:
    """``act(*case)`` for every case, some at a time."""
    total = Found()
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(lambda case: act(*case), cases):
            total.add(found)
    return total
