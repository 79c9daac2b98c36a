"""Train one pack over one loaded base: claim, continue or begin, train, record and close cells."""

import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from study.adapters.processes import Order, Processes
from study.config import AUTO_COMPILE, CellConfig
from study.errors import StudyError, one_line
from study.models import FrozenBase, load_base
from study.models.compiled import programs
from study.store import CellWriter, Claim, ClaimLost, Damaged, StorageError, claim, is_claimed
from study.sweeps import processes, signals
from study.sweeps.cells import Cell
from study.sweeps.checkpointing import newest
from study.sweeps.devices import Device, claim_device
from study.sweeps.packs import Prepared, PreparedPack, folds, prepare
from study.sweeps.progress import Display
from study.sweeps.record import Recorder, config_yaml, record_of
from study.sweeps.sharing import Outcome, StopRequest, local_number, train_all
from study.tracking.runs import Tracker, tracker
from study.training.checkpoint import Snapshot
from study.training.devices import is_out_of_memory, keep_freed_memory, release_memory
from study.training.loop import train


class Worker:
    """What a process keeps from one pack to the next: its device, and the base on it.

    A context manager.
    """

    def __init__(self) -> None:
        self._device: tuple[str, Device] | None = None
        self._base: tuple[str, FrozenBase] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def device(self, config: CellConfig, must_stop: Callable[[], bool]) -> torch.device | None:
        """The device of a pack, claimed until the end; None if ``must_stop`` ended the wait."""
        if self._device is not None and self._device[0] != config.device:
            self.close()
        if self._device is None:
            number = local_number() if config.train.shard else None
            claimed = claim_device(config.device, must_stop, number)
            if claimed is None:
                return None
            self._device = config.device, claimed
        return self._device[1].device

    def base(self, cell: Cell, device: torch.device) -> FrozenBase:
        """The base of a pack on ``device``. ``cell``: one of the pack.

        Raises :class:`StudyError` if the weights have been replaced since the cell was planned.
        """
        config, planned = cell.config, cell.card.fingerprint
        wanted = repr((planned, config.model, device, config.precision))
        if self._base is None or self._base[0] != wanted:
            self._base = None  # before the next one is loaded: there may be no room for two
            base = load_base(config.model, device, config.precision)
            if base.card.fingerprint != planned:
                raise StudyError(
                    f"{base.card.name} has other weights than when the sweep was planned: "
                    "run the same command again, which trains cells of the new weights"
                )
            self._base = wanted, base
        return self._base[1]

    @property
    def held_bytes(self) -> int:
        """The bytes of the base that is held; 0 before the first pack."""
        model: Any = self._base[1].model if self._base else torch.nn.Module()
        tensors = (*model.parameters(), *model.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def close(self) -> None:
        """Release the base and the device."""
        self._base = None
        if self._device is not None:
            release_memory(self._device[1].device)
            self._device[1].release()
            self._device = None


def run(pack: Sequence[Cell], worker: Worker | None = None) -> None:
    """Train the cells of one pack until all have results, of this process or of another.

    ``worker``: with a base that stays loaded afterwards. A cell that fails is recorded as
    ``failed`` and the others go on. Afterwards this raises :class:`StudyError` naming the first
    failure.
    """
    with Worker() if worker is None else nullcontext(worker) as own:
        train_all(pack, lambda free: [train_pack(free, own)])


def train_pack(pack: Sequence[Cell], worker: Worker, posted: Path | None = None) -> Outcome:
    """Train those cells of a pack that have no results and that no other process holds.

    ``posted``: the file of its sweep, which may ask to stop.
    """
    must_stop = StopRequest(posted)
    todo = [cell for cell in pack if not cell.done and not is_claimed(cell.folder)]
    if not todo or must_stop() or (device := worker.device(todo[0].config, must_stop)) is None:
        return Outcome(signum=signals.asked())
    keep_freed_memory()
    world = processes.world(device)
    if not processes.begin(world, todo, must_stop):
        return Outcome(signum=signals.asked())
    prepared = prepare(todo, worker.held_bytes, device)
    compiles = prepared.cells[0].run.config.pack.compile
    base = worker.base(todo[0], processes.device_of_base(device))
    labels = {cell.id: cell.label for cell in todo}
    with (
        Display(todo[0].study_dir, labels, prepared.config.train.steps, posted) as display,
        programs(compiles),
        signals.patience(),
    ):
        tracked = tracker(prepared.config.tracker, display.say)
        if prepared.config.pack.compile == AUTO_COMPILE:
            display.say(f"pack.compile=auto: {'compiled' if compiles else 'not compiled'}")
        if dropped := prepared.corpus.rows["dropped"]:
            display.say(f"{dropped} rows of the data have nothing to learn and are left out")
        training = _Pass(prepared, base, world, display, tracked, must_stop)
        failures = training.train_folds()
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


@dataclass
class _Pass:
    """One pass over a pack: fold after fold, each claimed just before it trains."""

    pack: PreparedPack
    base: FrozenBase
    world: Processes
    display: Display
    tracked: Tracker
    must_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self.waiting = deque(folds(self.pack, self.base))
        self.afresh: set[str] = set()
        """The ids of cells whose checkpoints can't be used."""

    def train_folds(self) -> dict[Path, str]:
        """Returns a line for each that failed, by folder."""
        failures: dict[Path, str] = {}
        while self.waiting and not self.must_stop():
            fold = self._claim(self.waiting.popleft())
            recorder = self._open(fold) if fold else None
            if recorder:
                failures |= self._train(fold, recorder)
                release_memory(self.pack.device)
        return failures

    def _claim(self, fold: Sequence[Prepared]) -> list[_Claimed]:
        """Claim the cells of a fold that are still to train, and that continue at one step.

        Those of other steps become the next fold.
        """
        claimed: list[_Claimed] = []
        others: list[Prepared] = []
        try:
            for prepared in fold:
                cell = prepared.cell
                if (held := claim(cell.folder)) is None:
                    continue
                claimed.append(_Claimed(prepared, held, None))
                if cell.done:  # another process has trained it since the pack was made
                    claimed.pop().claim.release()
                    continue
                if cell.id not in self.afresh:
                    state = newest(cell, self.pack.device, self.display.say)
                    claimed[-1] = _Claimed(prepared, held, state)
                if claimed[-1].step != claimed[0].step:
                    claimed.pop().claim.release()
                    others.append(prepared)
        except BaseException:
            _release(claimed)
            raise
        if others:
            self.waiting.appendleft(others)
        return claimed

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
        device = self.pack.device
        try:
            if self._run_steps(fold, recorder):
                recorder.close(device)
                return _not_done(recorder.fold)
            recorder.interrupt(device)
        except ClaimLost as error:  # the folder of a cell was deleted
            self.display.say(str(error))
            recorder.interrupt(device)
        except StorageError:
            recorder.interrupt(device)
            raise
        except Exception as error:  # of any kind: the other folds can still be trained
            try:
                return self._failed(fold, recorder, error)
            except BaseException:
                recorder.interrupt(device)
                raise
        except BaseException:  # a second signal stops at once
            recorder.interrupt(device)
            raise
        return {}

    def _failed(
        self, fold: Sequence[_Claimed], recorder: Recorder, error: Exception
    ) -> dict[Path, str]:
        """A fold has raised ``error``: try it in another way, or close it as failed."""
        device, half = self.pack.device, len(fold) // 2
        if self.world.size > 1:  # its peers are elsewhere in their steps
            raise self._of_several(recorder, error) from error
        if isinstance(error, StudyError) and fold[0].state and not recorder.has_begun:
            recorder.interrupt(device)
            self._again(fold, afresh=fold, why=str(error))
            return {}
        if half and is_out_of_memory(error):
            recorder.interrupt(device)
            self.display.say(f"out of memory with {len(fold)} cells in a fold: retrying {half}")
            cells = [each.prepared for each in fold]
            self.waiting.extendleft([cells[half:], cells[:half]])
            return {}
        return recorder.fail(error, device)

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
        steps = train(self.base, self.pack.corpus, runs, states, self.world)
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
