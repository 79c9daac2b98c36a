"""Train one pack over one loaded base: claim, continue or begin, train, record and close cells."""

import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from study.adapters.processes import Order, Processes
from study.config import CellConfig
from study.errors import StudyError, one_line
from study.models import FrozenBase, ModelCard, describe, load_base
from study.models.compiled import Compiler, compiler
from study.store import (
    CellWriter,
    Claim,
    ClaimLost,
    Damaged,
    StorageError,
    claim,
    is_claimed,
)
from study.sweeps import processes, signals
from study.sweeps.cells import Cell
from study.sweeps.checkpointing import newest
from study.sweeps.devices import others_wait, own_device
from study.sweeps.packs import folds
from study.sweeps.prepare import Prepared, PreparedPack, prepare
from study.sweeps.progress import Display
from study.sweeps.record import Recorder, config_yaml, record_of
from study.sweeps.sharing import Outcome, StopRequest, train_all
from study.tracking.runs import Tracker, tracker
from study.training.checkpoint import Snapshot
from study.training.devices import is_out_of_memory, keep_freed_memory, release_memory
from study.training.loop import train


def run(pack: Sequence[Cell]) -> None:
    """Train the cells of one pack until all have results, of this process or of another.

    A cell that fails is recorded as ``failed`` and the others go on. Afterwards this raises
    :class:`StudyError` naming the first failure.
    """
    train_all(pack, lambda free: [train_pack(free)])


def train_pack(pack: Sequence[Cell], agenda: Path | None = None) -> Outcome:
    """Train those cells of a pack that have no results and that no other process holds.

    ``agenda``: the file of its sweep, whose process may ask to stop.
    """
    must_stop = StopRequest(agenda)
    todo = [cell for cell in pack if not cell.done and not is_claimed(cell.folder)]
    if not todo or must_stop():
        return Outcome(signum=signals.asked())
    keep_freed_memory()
    with _device(todo[0].config, must_stop) as device:
        if device is None:
            return Outcome(signum=signals.asked())
        outcome = _train_on(device, todo, agenda, must_stop)
        if device.type == "cuda" and others_wait():
            forget_base()
            release_memory(device)
    return outcome


def _device(
    config: CellConfig, must_stop: StopRequest
) -> AbstractContextManager[torch.device | None]:
    """Inside, the device of a pack is this process's."""
    number = processes.local_number() if config.train.shard else None
    return own_device(config.device, must_stop, number)


def _train_on(
    device: torch.device, todo: Sequence[Cell], agenda: Path | None, must_stop: StopRequest
) -> Outcome:
    world = processes.world(device)
    if not processes.begin(world, todo, must_stop):
        return Outcome(signum=signals.asked())
    prepared = prepare(todo, held_bytes(), device)
    base = loaded_base(
        prepared.config, processes.device_of_base(device), prepared.cells[0].cell.card
    )
    labels = {cell.id: cell.label for cell in todo}
    with (
        Display(todo[0].study_dir, labels, prepared.config.train.steps, agenda) as display,
        compiler(prepared.config.pack.compile, display.say) as compiles,
        signals.patience(),
    ):
        tracked = tracker(prepared.config.tracker, display.say)
        if dropped := prepared.corpus.rows["dropped"]:
            display.say(f"{dropped} rows of the data have nothing to learn and are left out")
        failures = _Pass(prepared, base, world, compiles, display, tracked, must_stop).train_folds()
    world.agreed(None)
    return Outcome(failures, signals.asked())


@dataclass(frozen=True)
class _Claimed:
    """A cell that this process holds, and the state that it continues from, if it has one."""

    prepared: Prepared
    claim: Claim
    state: Snapshot | None

    @property
    def step(self) -> int:
        """The first step to run."""
        return self.state.step if self.state else 0


class _Pass:
    """One pass over a pack: fold after fold, each claimed just before it trains."""

    def __init__(
        self,
        pack: PreparedPack,
        base: FrozenBase,
        world: Processes,
        compiles: Compiler,
        display: Display,
        tracked: Tracker,
        must_stop: Callable[[], bool],
    ) -> None:
        self.pack, self.base, self.world = pack, base, world
        self.display, self.tracked = display, tracked
        self.compiles, self.must_stop = compiles, must_stop
        self.afresh: set[str] = set()
        """The ids of cells whose checkpoints can't be used."""

    def train_folds(self) -> dict[Path, str]:
        """Returns a line for each that failed, by folder."""
        failures: dict[Path, str] = {}
        self.waiting = deque(folds(self.pack, self.base))
        while self.waiting and not self.must_stop():
            fold = self._at_one_step(self._claim(self.waiting.popleft()))
            recorder = self._open(fold) if fold else None
            if recorder:
                failures |= self._train(fold, recorder)
                release_memory(self.pack.device)
        return failures

    def _claim(self, fold: Sequence[Prepared]) -> list[_Claimed]:
        """Claim the cells of a fold that are still to train."""
        claimed: list[_Claimed] = []
        try:
            for prepared in fold:
                cell = prepared.cell
                if (held := claim(cell.folder)) is None:
                    continue
                claimed.append(_Claimed(prepared, held, None))
                if cell.done:  # another process has trained it since the pack was made
                    claimed.pop().claim.release()
                elif cell.id not in self.afresh:
                    state = newest(cell, self.pack.device, self.display.say)
                    claimed[-1] = _Claimed(prepared, held, state)
        except BaseException:
            _release(claimed)
            raise
        return claimed

    def _at_one_step(self, claimed: Sequence[_Claimed]) -> list[_Claimed]:
        """The cells that continue at the step of the first one. The others become the next fold."""
        fold = [each for each in claimed if each.step == claimed[0].step]
        others = [each for each in claimed if each.step != claimed[0].step]
        if others:
            _release(others)
            self.waiting.appendleft([each.prepared for each in others])
        return fold

    def _open(self, fold: Sequence[_Claimed]) -> Recorder | None:
        """Open the cells for writing; None if the rows before a checkpoint are damaged."""
        corpus = self.pack.corpus
        shared = {"fold": secrets.token_hex(6), "rows": corpus.rows}
        writers: list[CellWriter] = []
        try:
            for each in fold:
                cell, step = each.prepared.cell, each.step
                record = record_of(cell, self.pack.device, corpus.fingerprint, step) | shared
                writers.append(CellWriter(each.claim, config_yaml(cell), record, step))
            cells = [each.prepared.cell for each in fold]
            return Recorder(cells, writers, self.display, self.tracked)
        except BaseException as error:
            for writer in writers:
                writer.interrupt()
            _release(fold)
            if not isinstance(error, Damaged) or len(writers) == len(fold):
                raise
            self._again(fold, afresh=[fold[len(writers)]], why=str(error))
            return None

    def _train(self, fold: Sequence[_Claimed], recorder: Recorder) -> dict[Path, str]:
        """Train a fold and record its results. Returns a line for each that failed, by folder."""
        try:
            return self._trained(fold, recorder)
        except ClaimLost as error:  # as if another process had held the cells from the start
            self.display.say(str(error))
            recorder.interrupt(self.pack.device)
            return {}
        except BaseException:  # the disk can't be written, or a second signal stops at once
            recorder.interrupt(self.pack.device)
            raise

    def _trained(self, fold: Sequence[_Claimed], recorder: Recorder) -> dict[Path, str]:
        device = self.pack.device
        try:
            if self._run_steps(fold, recorder):
                recorder.close(device)
                return _not_done(recorder.fold)
            recorder.interrupt(device)
        except (ClaimLost, StorageError):
            raise
        except Exception as error:  # of any kind: the other folds can still be trained
            if self.world.size > 1:  # its peers are elsewhere in their steps
                raise self._of_several(recorder, error) from error
            half = len(fold) // 2
            if isinstance(error, StudyError) and fold[0].state and not recorder.has_begun:
                recorder.interrupt(device)
                self._again(fold, afresh=fold, why=str(error))
            elif half and is_out_of_memory(error):
                recorder.interrupt(device)
                self.display.say(f"out of memory with {len(fold)} cells in a fold: retrying {half}")
                cells = [each.prepared for each in fold]
                self.waiting.extendleft([cells[half:], cells[:half]])
            else:
                return recorder.fail(error, device)
        return {}

    def _of_several(self, recorder: Recorder, error: Exception) -> StudyError:
        """Close the cell of several processes after an ``error`` in this one. Returns why."""
        cause = processes.cause(error)
        if cause is None:
            recorder.interrupt(self.pack.device)
            return StudyError(
                "a process of torchrun was lost: run the same command again, which continues"
            )
        lines = recorder.fail(cause, self.pack.device)
        return StudyError(next(iter(lines.values()), one_line(cause)))

    def _run_steps(self, fold: Sequence[_Claimed], recorder: Recorder) -> bool:
        """Run the steps of a fold. False if it was stopped before the last one."""
        runs = [each.prepared.run for each in fold]
        states = [each.state for each in fold if each.state]
        self.world.agreed((fold[0].prepared.cell.id, fold[0].step))
        self.compiles.folds_after = len(self.waiting)
        steps = train(self.base, self.pack.corpus, runs, states, self.compiles, self.world)
        with contextlib.closing(steps):
            for results in steps:
                recorder.add(results)
                if (signals.handed() or self.must_stop()) and recorder.can_stop:
                    recorder.checkpoint()
                    signals.hand_over()
                    if self.must_stop():
                        self.world.agreed(Order.STOP)
                        return False
                self.world.agreed(Order.GO_ON)
        recorder.save_adapters(self.base.model)
        return True

    def _again(self, fold: Sequence[_Claimed], afresh: Sequence[_Claimed], why: str) -> None:
        """Make ``fold`` the next one, with the cells of ``afresh`` at step 0."""
        for each in afresh:
            self.afresh.add(each.prepared.cell.id)
            self.display.say(f"cell {each.prepared.cell.id} begins again: {why}")
        self.waiting.appendleft([each.prepared for each in fold])


def _not_done(cells: Sequence[Cell]) -> dict[Path, str]:
    """Cells that have ended and can't be read. To train them again could go on for ever."""
    return {
        cell.folder: f"cell {cell.id} ({cell.label}): its results can't be read: run study check"
        for cell in cells
        if not cell.done
    }


def _release(cells: Sequence[_Claimed]) -> None:
    for each in cells:
        each.claim.release()


def loaded_base(
    config: CellConfig, device: torch.device, card: ModelCard | None = None
) -> FrozenBase:
    """The base of a pack. It stays in memory: the next pack of this process may have the same.

    ``card``: of the base that the cells were planned with. Raises :class:`StudyError` if the
    weights have been replaced since.
    """
    planned = (card or describe(config.model)).fingerprint
    wanted = repr((planned, config.model, device, config.precision))
    if wanted not in _BASE:
        forget_base()  # before the next one is loaded: there may be no room for two
        base = load_base(config.model, device, config.precision)
        if base.card.fingerprint != planned:
            raise StudyError(
                f"{base.card.name} has other weights than when the sweep was planned: "
                "run the same command again, which trains cells of the new weights"
            )
        _BASE[wanted] = base
    return _BASE[wanted]


def held_bytes() -> int:
    """The bytes of the base that this process holds; 0 before the first pack."""
    return sum(
        tensor.numel() * tensor.element_size()
        for base in _BASE.values()
        for tensor in (*base.model.parameters(), *base.model.buffers())
    )


def forget_base() -> None:
    """Release the base that this process holds."""
    _BASE.clear()


_BASE: dict[str, FrozenBase] = {}
