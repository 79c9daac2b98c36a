"""Train one pack over one loaded base: claim, train, record and close its cells."""

import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from study.adapters import resolve_targets
from study.config import CellConfig
from study.errors import StudyError
from study.models import FrozenBase, load_base
from study.models.prefix import shared_prefix
from study.store import CellWriter
from study.sweeps.cells import Cell, to_train
from study.sweeps.packs import folds
from study.sweeps.prepare import Prepared, PreparedPack, prepare
from study.sweeps.progress import Display
from study.sweeps.record import Recorder, config_yaml, record_of
from study.tracking.runs import Tracker, tracker
from study.training.allocator import keep_freed_memory
from study.training.devices import is_out_of_memory, release_memory
from study.training.loop import train

PREFIX_SHARE = 10
"""One part in so many of a pack's memory may hold activations below the adapted blocks."""


def run(pack: Sequence[Cell]) -> None:
    """Train the cells of one pack that have no results yet.

    A cell that fails is recorded as ``failed`` and the others go on. Afterwards this raises
    :class:`StudyError` naming the first failure.
    """
    todo = to_train(pack)
    if not todo:
        return
    keep_freed_memory()
    prepared = prepare(todo, held_bytes())
    base = loaded_base(prepared.config, prepared.device)
    labels = {cell.id: cell.label for cell in todo}
    failures: list[str] = []
    with (
        Display(todo[0].study_dir, labels, prepared.config.train.steps) as display,
        tracker(prepared.config.tracker, display.pack, display.say) as tracked,
        _prefix_shared(base, prepared),
    ):
        waiting = deque(folds(prepared, base))
        while waiting:
            fold = waiting.popleft()
            recorder = _claim(fold, prepared, display, tracked)
            error = _train(fold, prepared, base, recorder)
            if error is not None:
                failed = recorder.fail(error)
                if len(fold) > 1 and is_out_of_memory(error):
                    half = len(fold) // 2
                    display.say(f"out of memory with {len(fold)} cells in a fold: retrying {half}")
                    waiting.extendleft([fold[half:], fold[:half]])
                else:
                    failures += failed
            recorder.close(prepared.device)
            release_memory(prepared.device)
    if failures:
        raise StudyError(f"{len(failures)} of {len(todo)} cells failed; {failures[0]}")


def _claim(
    fold: Sequence[Prepared], pack: PreparedPack, display: Display, tracked: Tracker
) -> Recorder:
    """Open the folders of a fold's cells for writing."""
    cells = [prepared.cell for prepared in fold]
    shared = {"fold": secrets.token_hex(6)}
    writers = [
        CellWriter(
            cell.folder,
            config_yaml(cell),
            record_of(cell, pack.device, pack.corpus.fingerprint) | shared,
        )
        for cell in cells
    ]
    return Recorder(cells, writers, display, tracked)


def _train(
    fold: Sequence[Prepared], pack: PreparedPack, base: FrozenBase, recorder: Recorder
) -> Exception | None:
    """Train a fold and record its results. Returns the error that ended it, if one did."""
    try:
        for results in train(base, pack.corpus, [prepared.run for prepared in fold]):
            recorder.add(results)
        recorder.save_adapters(base.model)
    except Exception as error:  # of any kind: the other folds can still be trained
        return error
    return None


def _prefix_shared(base: FrozenBase, pack: PreparedPack) -> AbstractContextManager[object]:
    """Inside, blocks below every adapted layer run once a batch for all cells of the pack."""
    if pack.config.model.quant_bits is not None:  # its products depend on the whole batch
        return nullcontext()
    layers = resolve_targets(base.card.linears, pack.config.adapter.targets)
    return shared_prefix(base, layers, pack.memory // PREFIX_SHARE)


def loaded_base(config: CellConfig, device: torch.device) -> FrozenBase:
    """The base of a pack. It stays in memory: the next pack of this process may have the same."""
    wanted = repr((config.model, device, config.precision))
    if wanted not in _BASE:
        forget_base()  # before the next one is loaded: there may be no room for two
        _BASE[wanted] = load_base(config.model, device, config.precision)
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
