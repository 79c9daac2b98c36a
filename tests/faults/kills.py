"""Sweeps that are killed at random and run again until they are complete."""

import random
import re
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .compare import differences, left_over
from .evidence import evidence, read_trace
from .plan import Plan
from .processes import HANGS, ROOT, Ended, Running, Starter, wait_for_orphans
from .scenarios import EVERY, SWEEPS, arguments, make_folder, study_of

SIGNALS = {signal.SIGKILL: 5, signal.SIGTERM: 2, signal.SIGINT: 2, signal.SIGUSR1: 1}
"""How often each signal is drawn."""
GRACEFUL = {128 + signum: signum.name for signum in SIGNALS if signum != signal.SIGKILL}
"""The exit codes of stops that a process handles."""
AT_A_TIME = "at a time"
"""In place of a file call, for a signal from outside."""
ROUNDS = 3
"""The most rounds with kills before a sweep is left to complete."""
FINISHES = 4
"""The most rounds without kills that a sweep may take to complete."""


@dataclass(frozen=True)
class Undisturbed:
    """A sweep's results without faults, its points and its seconds in a forked process."""

    study: Path
    points: int
    seconds: float


@dataclass
class Tally:
    """What the trials have shown. Every list holds a line for each fault that was found."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    differing: int = 0
    left_over: int = 0
    twice: int = 0
    lost: list[int] = field(default_factory=list)
    in_writing: list[int] = field(default_factory=list)
    after_stop: list[int] = field(default_factory=list)
    trials: int = 0
    seconds: float = 0.0

    def add(self, other: "Tally") -> None:
        """Take in the tally of one trial."""
        for name in ("kills", "stages", "exits"):
            getattr(self, name).update(getattr(other, name))
        for name in ("wrong", "lost", "in_writing", "after_stop"):
            getattr(self, name).extend(getattr(other, name))
        self.differing += other.differing
        self.left_over += other.left_over
        self.twice += other.twice
        self.trials += other.trials

    @property
    def timed(self) -> int:
        """The number of kills that came from outside, at a time."""
        return self.stages[AT_A_TIME]

    @property
    def killed(self) -> int:
        """The number of kills that met a live process."""
        return self.kills.total()


class Trials:
    """Draws trials from a seed and runs them in folders below ``place``."""

    def __init__(
        self,
        place: Path,
        seed: int,
        sweeps: Sequence[str] = tuple(SWEEPS),
        seeded_bug: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.place, self.seed, self.sweeps, self.seeded_bug = place, seed, sweeps, seeded_bug
        self.say = say
        self.starter = Starter(place / "cache")
        self._undisturbed: dict[str, Undisturbed] = {}

    def undisturbed(self, sweep: str) -> Undisturbed:
        """The sweep without faults, by one process. It is trained once."""
        if sweep not in self._undisturbed:
            folder = make_folder(self.place / f"undisturbed {sweep}")
            plan = Plan(str(folder), "0")
            began = time.monotonic()
            ended = self.starter.start(arguments(sweep), plan).wait()
            seconds = time.monotonic() - began
            if ended.code != 0:
                raise RuntimeError(f"the undisturbed sweep {sweep} ends with {ended}")
            points = plan.points.stat().st_size
            self._undisturbed[sweep] = Undisturbed(study_of(folder), points, seconds)
        return self._undisturbed[sweep]

    def trial(self, number: int, launcher: str, fresh: bool = False) -> Tally:
        """Kill one sweep until it has had its kills, let it complete, and compare it."""
        rng = random.Random(f"{self.seed}/{number}")
        sweep = self.sweeps[number % len(self.sweeps)]
        undisturbed = self.undisturbed(sweep)
        folder = make_folder(self.place / f"trial {number}")
        trial = _Trial(self, rng, launcher, fresh, arguments(sweep, launcher), folder, undisturbed)
        trial.run()
        tally = trial.tally
        if tally.wrong:
            about = f"seed {self.seed}, trial {number}, {launcher}, {sweep}, in {folder}"
            tally.wrong = [f"{line} ({about})" for line in tally.wrong]
            for line in tally.wrong:
                self.say(line)
        else:
            shutil.rmtree(folder)
            for path in self.place.glob(f"{folder.name}.*"):
                path.unlink()
        return tally

    def run(self, kills: int, launcher: str, first: int, fresh_every: int, jobs: int) -> Tally:
        """Trials under one launcher until there were so many kills.

        ``fresh_every``: one trial in so many has fresh processes; 0: none. ``jobs``: trials at
        once.
        """
        for sweep in self.sweeps:
            self.undisturbed(sweep)
        tally, began = Tally(), time.monotonic()
        number = first
        with ThreadPoolExecutor(jobs) as pool:
            while tally.killed < kills:
                numbers = range(number, number + jobs)
                fresh = [bool(fresh_every) and n % fresh_every == fresh_every - 1 for n in numbers]
                for found in pool.map(self.trial, numbers, [launcher] * jobs, fresh):
                    tally.add(found)
                number += jobs
        tally.seconds = time.monotonic() - began
        return tally


@dataclass
class _Trial:
    """One sweep in one folder."""

    trials: Trials
    rng: random.Random
    launcher: str
    fresh: bool
    arguments: list[str]
    folder: Path
    undisturbed: Undisturbed
    tally: Tally = field(default_factory=Tally)
    runs: int = 0
    plans: list[Plan] = field(default_factory=list)

    def run(self) -> None:
        self.tally.trials = 1
        complete = False
        for _ in range(self.rng.randint(1, ROUNDS)):
            complete = complete or 0 in self._round(disturbed=True)
        for _ in range(FINISHES if not complete else 0):
            codes = self._round(disturbed=False)
            if set(codes) == {0}:
                break
            self.tally.wrong.append(f"without kills it ends with {codes}")
        for pid in wait_for_orphans(self.plans, self._forked_workers):
            self.tally.wrong.append(f"process {pid} does not end")
        self._compare()

    @property
    def _forked_workers(self) -> bool:
        """Whether workers of joblib may outlive a killed sweep: forked ones inherit each other's
        pipes, and do not see that it has ended."""
        return self.launcher == "joblib" and not self.fresh

    def _round(self, disturbed: bool) -> list[int | None]:
        """Run the command once or twice at the same time. Returns the exit codes."""
        running: list[Running] = []
        late: list[tuple[float, int, bool, Running]] = []
        for _ in range(self.rng.choice([1, 2, 2])):
            plan, timed = self._plan(disturbed)
            self.plans.append(plan)
            started = self.trials.starter.start(self.arguments, plan, self.fresh)
            running.append(started)
            if timed:
                signum, group = self._signal()
                late.append((self.rng.random() * self._seconds(), signum, group, started))
            time.sleep(self.rng.random() * 0.2)
        began, sent = time.monotonic(), []
        for seconds, signum, group, started in sorted(late, key=lambda each: each[0]):
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            if started.send(signum, group):
                self._count(signum, AT_A_TIME)
                sent.append((started.plan.run, signum))
        ended = [each.wait() for each in running]
        asked = dict(sent) | self._faults()
        for each, how in zip(running, ended, strict=True):
            self._check_end(each.plan, how, asked.get(each.plan.run))
        return [how.code for how in ended]

    def _seconds(self) -> float:
        """How long a run takes, to draw a time from. A fresh one begins with imports."""
        launched = {"basic": 0.0, "joblib": 0.5, "submitit_local": 8.0}[self.launcher]
        return self.undisturbed.seconds + launched + (7.0 if self.fresh else 0.0)

    def _signal(self) -> tuple[int, bool]:
        """A signal, and whether all processes of a run get it."""
        [signum] = self.rng.choices(list(SIGNALS), list(SIGNALS.values()))
        return signum, self.rng.random() < 0.5

    def _plan(self, disturbed: bool) -> tuple[Plan, bool]:
        """The plan of the next run, and whether it is disturbed at a time instead of a point."""
        self.runs += 1
        plan = Plan(
            str(self.folder),
            str(self.runs),
            fork_workers=not self.fresh,
            seeded_bug=self.trials.seeded_bug,
        )
        how = self.rng.choice(["point", "point", "point", "time"]) if disturbed else "not"
        if how != "point":
            return plan, how == "time"
        signum, group = self._signal()
        # Early points more often: a run that shares or continues a sweep has fewer of them.
        at = 1 + int(self.undisturbed.points * self.rng.random() ** 2)
        changes = {"at": at, "signal": int(signum), "group": group}
        return Plan(**(vars(plan) | changes)), False

    def _faults(self) -> dict[str, int]:
        """The signals that runs of this round have sent to themselves, by run."""
        found = {}
        by_run = {plan.run: plan for plan in self.plans}
        for event in read_trace(self.plans[0].trace):
            if event["event"] == "fault":
                signum = by_run[event["run"]].signal
                assert signum is not None
                found[event["run"]] = signum
                if (event["run"], signum) not in self._counted:
                    self._counted.add((event["run"], signum))
                    self._count(signum, event["operation"])
        return found

    _counted: set[tuple[str, int]] = field(default_factory=set)

    def _count(self, signum: int, stage: str) -> None:
        self.tally.kills[signal.Signals(signum).name, self.launcher] += 1
        self.tally.stages[stage] += 1

    def _check_end(self, plan: Plan, ended: Ended, signum: int | None) -> None:
        code, lines = ended.code, ended.err.strip().splitlines()
        name = HANGS if code is None else str(code)
        if code in GRACEFUL:
            name = f"{code} {GRACEFUL[code]}"
            commands = [line.partition("continue with: ")[2] for line in lines]
            if not any(shlex.split(command) == ["study", *self.arguments] for command in commands):
                self.tally.wrong.append(f"no line that continues: {ended.err[-300:]!r}")
        self.tally.exits[name] += 1
        # With -SIGINT, it came before study listened, and the interpreter shows an import.
        if code != -signal.SIGINT and (traceback := traceback_of_study(ended.err)):
            self.tally.wrong.append(f"a traceback: {traceback}")
        expected = {0} if signum is None else {0, 128 + signum, -signum}
        if signum is not None and self.launcher != "basic":
            expected |= {2, 130}  # a worker alone was killed, and its sweep says so
        if code not in expected:
            about = "no signal" if signum is None else signal.Signals(signum).name
            self.tally.wrong.append(
                f"run {plan.run} ends with {code} after {about}: {ended.err[-500:]}"
            )

    def _compare(self) -> None:
        study = study_of(self.folder)
        lines = differences(study, self.undisturbed.study)
        self.tally.differing += bool(lines)
        found = evidence(read_trace(self.plans[0].trace))
        self.tally.twice += len(found.twice)
        self.tally.lost += found.lost
        self.tally.in_writing += found.in_writing
        self.tally.after_stop += found.after_stop
        self.tally.left_over += len(left_over(study))
        self.tally.wrong += [*lines, *found.twice]
        if max(found.lost, default=0) > EVERY:
            self.tally.wrong.append(f"{max(found.lost)} steps lost by a kill, interval {EVERY}")
        if max(found.in_writing, default=0) > EVERY:
            self.tally.wrong.append(f"{max(found.in_writing)} steps lost while writing")
        if any(found.after_stop):
            self.tally.wrong.append(f"{max(found.after_stop)} steps lost by a stop")


def traceback_of_study(err: str) -> str:
    """The end of ``err`` if it has a traceback through the package; those of launchers' own
    processes are theirs."""
    ours = re.compile(rf'File "{re.escape(str(ROOT))}/(study|hydra_plugins)/')
    return err[-1500:] if "Traceback" in err and ours.search(err) else ""
