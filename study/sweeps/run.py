"""Train packs of cells: claim them, continue or begin them, and train them fold by fold."""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from study.analysis.answers import answer
from study.analysis.derived import load_tables
from study.errors import StudyError, count_noun, one_line
from study.models import FrozenBase, load_base
from study.store import StorageError, is_claimed
from study.store.writer import remove_leftovers
from study.sweeps import processes, signals
from study.sweeps.cells import Cell
from study.sweeps.packs import folds, prepare
from study.sweeps.progress import Display, Outcome, must_stop
from study.sweeps.record import Recorder
from study.tracking.runs import tracker
from study.training.devices import release_memory
from study.training.loop import train
from study.training.sharding import Order, Processes

_POLL = 1.0
"""Seconds between two looks at cells that other processes hold."""


class Worker(contextlib.ExitStack):
    """The device and the base that a process keeps between packs, until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._device: torch.device | None = None
        self._base: tuple[str, FrozenBase] | None = None

    def device(self, name: str, stop: Callable[[], bool]) -> torch.device | None:
        """The device that ``device=name`` means. None if ``stop`` ended the wait for it."""
        self._device = self._device or processes.claim_device(name, stop, self)
        return self._device

    def base(self, cell: Cell, device: torch.device) -> FrozenBase:
        """The base of a cell on a device. Raises :class:`StudyError` if its weights changed."""
        config, planned = cell.config, cell.card.fingerprint
        wanted = repr((planned, config.model, device, config.precision))
        if self._base is None or self._base[0] != wanted:
            self._base = None  # before the next one is loaded: there may be no room for two
            release_memory(device)
            base = load_base(config.model, device, config.precision)
            if base.card.fingerprint != planned:
                why = f"{base.card.name} has other weights than when the sweep was planned"
                raise StudyError(f"{why}: rerun the command")
            self._base = wanted, base
        return self._base[1]


def run(pack: Sequence[Cell], worker: Worker | None = None) -> None:
    """Train the cells of one pack until all have results, of this process or of another."""
    with Worker() if worker is None else contextlib.nullcontext(worker) as own:
        train_all(pack, lambda free: [train_pack(free, own)])


def train_all(cells: Sequence[Cell], launch: Callable[[list[Cell]], Iterable[Outcome]]) -> None:
    """Call ``launch`` with the cells to train until every cell has results, from any process.

    ``launch`` makes one pass over cells that no process holds. A cell that has failed here is not
    tried again. The error at the end names the first failure.
    """
    failures: dict[Path, str] = {}
    distinct = {cell.folder: cell for cell in cells}.values()
    for cell in distinct:
        remove_leftovers(cell.folder)
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


def train_pack(cells: Sequence[Cell], worker: Worker, posted: Path | None = None) -> Outcome:
    """Train the cells without results that no other process holds. ``posted``: their sweep's
    file."""
    stop = partial(must_stop, posted)
    todo = [cell for cell in cells if not cell.done and not is_claimed(cell.folder)]
    if not todo or stop() or (device := worker.device(todo[0].config.device, stop)) is None:
        return Outcome(signum=signals.asked())
    world = processes.world(device)
    world.agreed(todo)
    pack = prepare(todo, device)
    # Processes divide copies of a base that is in the host's memory.
    base = worker.base(todo[0], device if world.size == 1 else processes.CPU)
    display = Display(todo[0].study_dir, len(todo), pack.config.train.steps, posted)
    with display.bar, contextlib.ExitStack() as at_the_end, signals.patience():
        if pack.config.pack.compile:
            at_the_end.callback(torch.compiler.reset)
        if dropped := pack.corpus.rows["dropped"]:
            display.say(f"skipped {dropped} rows without target tokens")
        if pack.config.pack.padding_free is not False and not base.separates_sequences:
            display.say(f"{base.card.name} mixes the sequences of a row, so padding is computed")
        if any(cell.config.bf16_form == "factored" for cell in todo):
            bits = pack.config.model.quant_bits
            why = f"the base has {bits} bits" if bits else "adapter.contraction=factored"
            display.say(f"bf16 ({why}): an output below 1/512 of its layer's is lost")
        tracked = tracker(pack.config.tracker, display.say)
        failures: dict[Path, str] = {}
        waiting = folds(pack)
        while waiting and not stop():
            with Recorder(waiting.pop(0), pack, display, tracked) as recorder:
                waiting[:0] = _train_fold(recorder, base, world, stop)
            failures |= recorder.failures
            release_memory(device)
            _tell_first_answer(recorder.cells, display)
    world.agreed(None)
    return Outcome(failures, signals.asked())


def _train_fold(
    recorder: Recorder, base: FrozenBase, world: Processes, stop: Callable[[], bool]
) -> list[list[Cell]]:
    """Train the cells that ``recorder`` has claimed. Returns the folds to train next: cells that
    it left, and the halves of a fold that failed, which may need too much memory."""
    cells, left = recorder.cells, [recorder.left] if recorder.left else []
    half = len(cells) // 2
    try:
        if cells and _run_steps(recorder, base, world, stop):
            recorder.close(base.model)
    except StorageError:
        raise
    except Exception as error:  # of any kind: the other folds can still be trained
        if processes.is_lost(error):
            lost = "another process of torchrun has failed or was lost"
            raise StudyError(f"{lost}: rerun the command to resume") from error
        if half:
            recorder.display.say(
                f"{len(cells)} cells in a fold: {one_line(error)}; retrying {half}"
            )
            return [cells[:half], cells[half:], *left]
        recorder.fail(error)
        if world.size > 1:  # its peers are elsewhere in their steps
            raise StudyError(next(iter(recorder.failures.values()), str(error))) from error
    return left


def _run_steps(
    recorder: Recorder, base: FrozenBase, world: Processes, stop: Callable[[], bool]
) -> bool:
    """Run the steps of a fold. False if it was stopped before the last one."""
    cells = [cell.config for cell in recorder.cells]
    world.agreed((recorder.cells[0].id, recorder.first_step))
    steps = train(base, recorder.pack.corpus, cells, recorder.states, world)
    with contextlib.closing(steps):
        for results in steps:
            recorder.add(results)
            if (signals.current().handed is not None or stop()) and recorder.can_stop:
                recorder.checkpoint()
                signals.hand_over()
                if stop():
                    world.agreed(Order.STOP)
                    return False
            world.agreed(Order.GO_ON)
    return True


def _tell_first_answer(fold: Sequence[Cell], display: Display) -> None:
    """After the last fold of the first of several seeds, say what this seed shows."""
    seed = display.sweep.first_seed_done() if display.sweep else None
    if seed is None or all(cell.config.seed != seed for cell in fold):
        return
    with contextlib.suppress(StudyError):  # nothing to fit, such as one rank
        said = answer(load_tables(fold[0].study_dir))
        display.say(f"first answer, of one seed ({seed}); the others follow")
        for sentence in said:
            display.say(f"- {sentence}")
