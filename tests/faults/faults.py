"""Kills, failing file calls and losses of power: the sweep resumes with equal results."""

import errno
import json
import random
import re
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.forked import ROOT

from .compare import differences
from .instrument import POWER_LOST, Plan
from .power import LEAST, NAMES_ONLY
from .sweeps import arguments, make_folder, start, study_of

SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
"""A full disk, a broken one, one that is mounted read-only, and a folder without rights."""


@dataclass
class Found:
    """What the faults have shown. ``wrong``: a line for each thing that is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        """Take in another one."""
        self.counts.update(other.counts)
        self.wrong += other.wrong


class Sweep:
    """A sweep, in folders below ``place``: once undisturbed, then with faults."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.place, self.arguments = name, place, arguments(name)

    @cached_property
    def undisturbed(self) -> Path:
        """The study without faults."""
        folder = make_folder(self.place / f"undisturbed {self.name}")
        ended = start(self.arguments, Plan(str(folder), listing=True)).wait()
        if ended.returncode != 0:
            raise RuntimeError(f"the undisturbed sweep ends with {ended}")
        return study_of(folder)

    @cached_property
    def calls(self) -> list[dict[str, Any]]:
        """The file calls of the undisturbed sweep, in order."""
        listing = Plan(str(self.undisturbed.parents[1])).calls
        return [json.loads(line) for line in listing.read_text().splitlines()]

    def kinds(self) -> list[dict[str, Any]]:
        """One file call for each kind: by operation and path, whatever differs between cells."""
        found: dict[str, dict[str, Any]] = {}
        for call in self.calls:
            path = re.sub(r"cells/[0-9a-f]{12}", "cells/ID", call["path"])
            path = re.sub(r"\d+[-.0-9A-Za-z]*(?=\.partial|\.json|$)", "N", path)
            found.setdefault(f"{call['operation']} {path}", call)
        return list(found.values())

    def kill(self, seed: int) -> Found:
        """Kill one or two processes that share the sweep, up to three times; then complete it."""
        rng, found = random.Random(f"{seed}/{self.name}"), Found()
        folder = make_folder(self.place / f"kill {seed} {self.name}")
        for _ in range(rng.randint(1, 3)):
            signals = rng.choices(SIGNALS, k=rng.choice([1, 2, 2]))
            # Early calls more often: a run that shares or continues a sweep has fewer of them.
            at = [1 + int(len(self.calls) * rng.random() ** 2) for _ in signals]
            plans = [
                Plan(str(folder), at=n, signal=int(s)) for n, s in zip(at, signals, strict=True)
            ]
            runs = [start(self.arguments, plan) for plan in plans]
            for signum, run in zip(signals, runs, strict=True):
                ended = run.wait()
                found.counts[f"{signum.name}, exit code {ended.returncode}"] += 1
                found.wrong += self._wrong_end_of_killed(ended, signum)
        return self._completed(found, folder)

    def _wrong_end_of_killed(self, ended: CompletedProcess[str], signum: int) -> list[str]:
        found = []
        if ended.returncode not in (0, 128 + signum, -signum):
            found.append(f"it ends with {ended} after signal {signum}")
        ours = re.compile(rf'File "{re.escape(str(ROOT))}/(study|hydra_plugins)/')
        if ended.returncode != -signal.SIGINT and ours.search(ended.stderr):
            found.append(f"a traceback: {ended.stderr[-1500:]}")
        if ended.returncode == 128 + signum:
            lines = ended.stderr.splitlines()
            commands = [line.partition("continue with: ")[2] for line in lines]
            if ["study", *self.arguments] not in map(shlex.split, commands):
                found.append(f"no line that continues: {ended.stderr[-300:]!r}")
        return found

    def fail(self, at: int, number: int, for_good: bool) -> Found:
        """Let one call fail, or all from it on; then run the command again without faults."""
        name = f"{errno.errorcode[number]} {'for good ' if for_good else ''}at {at}"
        folder = make_folder(self.place / name)
        plan = Plan(str(folder), at=at, errno=number, for_good=for_good)
        ended = start(self.arguments, plan).wait()
        lines = ended.stderr.strip().splitlines()
        own = [line for line in lines if line.startswith("study: ")]
        found = Found(Counter([f"exit code {ended.returncode}"]))
        is_line = ended.returncode == 2 and len(own) == 1 and lines[-1] == own[0]
        if "Traceback" in ended.stderr or not (ended.returncode == 0 or is_line):
            found.wrong.append(f"exit code {ended.returncode}: {ended.stderr[-1500:]}")
        return self._completed(found, folder)

    def lose_power(self, at: int, seed: int) -> Found:
        """Lose power at a call; then run the command on what the disk may hold."""
        folder = make_folder(self.place / f"power {seed} at {at}")
        plan = Plan(str(folder), at=at, power=seed)
        ended = start(self.arguments, plan).wait()
        found = Found(Counter([f"exit code {ended.returncode}"]))
        if ended.returncode not in (0, POWER_LOST):
            found.wrong.append(f"it ends with {ended}")
        return self._completed(found, plan.after if ended.returncode == POWER_LOST else folder)

    def _completed(self, found: Found, folder: Path) -> Found:
        """Run the command without faults, and compare the results. Deletes what is not wrong."""
        ended = start(self.arguments, Plan(str(folder))).wait()
        if ended.returncode != 0:
            found.wrong.append(f"without faults it ends with {ended}")
        found.wrong += differences(study_of(folder), self.undisturbed)
        if found.wrong:
            found.wrong = [f"{line} ({folder})" for line in found.wrong]
        else:
            for left in folder.parent.glob(f"{folder.name.removesuffix('.after')}*"):
                shutil.rmtree(left)
        return found


def failing_cases(sweep: Sweep, number: int, seed: int) -> list[tuple[int, int, bool]]:
    """Calls that fail, with their errors: one of each kind, and others up to ``number``."""
    rng, kinds = random.Random(seed), sweep.kinds()
    others = [call for call in sweep.calls if call not in kinds]
    calls = [*rng.sample(kinds, len(kinds)), *rng.sample(others, len(others))]
    cases = [
        (call["at"], ERRORS[turn % len(ERRORS)], turn % 3 == 2) for turn, call in enumerate(calls)
    ]
    return cases[:number]


def power_cases(sweep: Sweep, number: int, seed: int) -> list[tuple[int, int]]:
    """Losses of power at calls that are spread over the sweep, with what is kept."""
    rng, last = random.Random(seed), len(sweep.calls)
    return [
        (1 + (2 * turn + 1) * last // (2 * number), rng.choice([LEAST, NAMES_ONLY, turn, turn]))
        for turn in range(number)
    ]


def run_all(act: Callable[..., Found], cases: Iterable[tuple[Any, ...]]) -> Found:
    """``act(*case)`` for every case, two at a time."""
    total = Found()
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda case: act(*case), cases):
            total.add(found)
    return total
