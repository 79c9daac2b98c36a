"""Cells to packs, packs to results.

:func:`packs` decides what shares a process; :func:`run` trains one pack over one loaded base, fold after fold. Where a
pack runs is a Hydra launcher's business.
"""

import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import groupby
from pathlib import Path

import torch

from study.adapters import Contraction, resolve_targets
from study.config import CellConfig
from study.data import Corpus, build_corpus
from study.errors import StudyError
from study.models import FrozenBase, load_base, load_tokenizer
from study.models.prefix import shared_prefix
from study.store import CellWriter, load_cells
from study.sweeps.agenda import Planned, posted
from study.sweeps.cells import Cell, to_train
from study.sweeps.plan import (
    Estimate,
    PackPlan,
    budget,
    check_fits,
    estimate,
    fastest_fold,
    fold_sizes,
    render_plan,
)
from study.sweeps.progress import Display
from study.sweeps.record import Recorder, config_yaml, record_of
from study.sweeps.status import counts
from study.tracking.runs import tracker
from study.training.allocator import keep_freed_memory
from study.training.loop import train
from study.training.run import Run


def announce(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Say on stderr what is about to be trained, and what is not."""
    distinct, left = len({cell.id for cell in cells}), sum(len(pack) for pack in packs)
    names = ", ".join(sorted({cell.config.name for cell in cells}))
    work = (
        f"{left} to train in {len(packs)} pack{'s' * (len(packs) != 1)}"
        if left
        else "nothing to train"
    )
    print(
        f"study {names}: {distinct} cells, {distinct - left} done, {work}",
        file=sys.stderr,
        flush=True,
    )


def show_plan(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Print on stdout what the packs are about to take: cells, folds, FLOPs, memory, time. Trains nothing."""
    announce(cells, packs)
    rows = []
    for pack in packs:
        config = pack[0].config
        device, corpus = choose_device(config.device), corpus_of(config)
        needs = [need(cell, corpus, device) for cell in pack]
        rows.append(
            PackPlan(
                [cell.config.adapter.rank for cell in pack], needs, budget(config, device), device
            )
        )
    print(render_plan(rows))


@contextmanager
def on_agenda(packs: Sequence[Sequence[Cell]]) -> Iterator[None]:
    """While inside, whoever looks at a study's folder sees what is still to be trained (:mod:`study.sweeps.agenda`)."""
    planned: dict[Path, list[Planned]] = {}
    for pack in packs:
        cells = planned.setdefault(pack[0].study_dir, [])
        number = cells[-1].pack + 1 if cells else 1
        cells += [Planned(cell.description, number, _cost(cell)) for cell in pack]
    with ExitStack() as stack:
        for study_dir, of_study in planned.items():
            stack.enter_context(posted(study_dir, of_study))
        yield


def conclude(cells: Sequence[Cell]) -> None:
    """Say on stderr how the cells' studies stand, and the command that comes next."""
    for study_dir in sorted({cell.study_dir for cell in cells}):
        print(f"study {study_dir.name}: {counts(load_cells(study_dir)['status'])}", file=sys.stderr)
        print(f"next: study analyze {study_dir}", file=sys.stderr, flush=True)


def packs(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by what a process shares: base, data, the shape of a step and the loop; each pack ordered by rank.

    ``pack.max_cells`` bounds a pack, so that a launcher with several workers has several packs to hand out.
    """
    groups: list[list[Cell]] = []
    for _, group in groupby(sorted(cells, key=_shared), key=_shared):
        ordered = sorted(group, key=lambda cell: cell.config.adapter.rank)
        size = ordered[0].config.pack.max_cells or len(ordered)
        # Dealt out like cards: packs cost about the same, where cut ones would put all high ranks in the last.
        count = -(-len(ordered) // size)
        groups += [ordered[start::count] for start in range(count)]
    return groups


def run(pack: Sequence[Cell]) -> None:
    """Train the cells of one pack that are not done, fold after fold, over one loaded base.

    A cell that fails is recorded as ``failed`` and the others go on; afterwards raises :class:`StudyError` naming it.
    """
    todo = to_train(pack)
    if not todo:
        return
    shared = todo[0].config
    device = choose_device(shared.device)
    keep_freed_memory()
    corpus = corpus_of(shared)
    needs = {cell.id: need(cell, corpus, device) for cell in todo}
    base = loaded_base(shared, device)
    failures: list[str] = []
    with (
        Display(
            todo[0].study_dir, {cell.id: cell.label for cell in todo}, shared.train.steps
        ) as display,
        tracker(shared.tracker, display.pack, display.say) as tracked,
        _below_shared(base, todo),
    ):
        waiting = deque(folds(todo, needs, base, corpus))
        while waiting:
            fold = waiting.popleft()
            writers = [
                CellWriter(
                    cell.folder, config_yaml(cell), record_of(cell, device, corpus.fingerprint)
                )
                for cell in fold
            ]
            recorder = Recorder(fold, writers, display, tracked)
            try:
                for results in train(
                    base, corpus, [Run.of(cell.config, corpus, device) for cell in fold]
                ):
                    recorder.add(results)
                recorder.save_adapters(base.model)
            except Exception as error:  # whatever it was, the other folds can still be trained
                failed = recorder.fail(error)
                if len(fold) > 1 and is_out_of_memory(error):
                    half = len(fold) // 2
                    display.say(
                        f"out of memory with {len(fold)} cells at once: going on with {half}"
                    )
                    waiting.extendleft([fold[half:], fold[:half]])
                else:
                    failures += failed
            recorder.close(device)
            release_memory(device)
    if failures:
        raise StudyError(f"{len(failures)} of {len(todo)} cells failed; {failures[0]}")


def _below_shared(base: FrozenBase, pack: Sequence[Cell]) -> AbstractContextManager[object]:
    """While inside, blocks that no cell of the pack adapts run once a batch, in a tenth of the pack's memory."""
    config = pack[0].config
    if config.model.quant_bits is not None:  # its products depend on the whole batch
        return nullcontext()
    layers = resolve_targets(base.card.linears, config.adapter.targets)
    return shared_prefix(base, layers, budget(config, base.device) // 10)


def folds(
    pack: Sequence[Cell], needs: Mapping[str, Estimate], base: FrozenBase, corpus: Corpus
) -> Iterator[Sequence[Cell]]:
    """The cells that go through the base in one forward pass: as many as fit, up to ``pack.fold``.

    ``auto`` is 1 on a CPU, where folding does not pay, and on CUDA what a short trial finds fastest. A cell of infinite
    rank goes alone: its adapter is another module. So do one that goes on with an adapter, whose layers may differ in
    rank, and one over an 8-bit base on CUDA, whose products depend on the whole batch (:mod:`study.models.quantised`).
    """
    alone = {
        cell.id for cell in pack if math.isinf(cell.config.adapter.rank) or cell.config.adapter.path
    }
    together = [cell for cell in pack if cell.id not in alone]
    if together:
        config, device = together[0].config, base.device
        most = config.pack.fold
        if most == "auto":
            most = (
                1
                if device.type == "cpu"
                else fastest_fold([cell.config for cell in together], base, corpus)
            )
        if device.type == "cuda" and config.model.quant_bits == 8:
            most = 1
        start = 0
        for size in fold_sizes([needs[cell.id] for cell in together], most, budget(config, device)):
            yield together[start : start + size]
            start += size
    yield from ([cell] for cell in pack if cell.id in alone)


def need(cell: Cell, corpus: Corpus, device: torch.device) -> Estimate:
    """What a cell will take. Raises :class:`StudyError` where ``pack.memory_gb`` is too little for it alone."""
    run = Run.of(cell.config, corpus, device)
    found = estimate(cell.config, cell.card, run.tokens, run.supervised, run.contraction)
    check_fits(cell.config, found, cell.label)
    return found


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises :class:`StudyError` where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError(
            "device=cuda, but torch sees no CUDA device: use device=cpu or device=auto"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own for it; a CPU's allocator raises a RuntimeError, and Python a MemoryError."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def release_memory(device: torch.device) -> None:
    """Give what the last fold held back to the device, so that the next one's is counted from nothing."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def loaded_base(config: CellConfig, device: torch.device) -> FrozenBase:
    """The base of a pack: the one of the pack before it in this process, if it is the same."""
    wanted = repr((config.model, device, config.precision))
    if wanted not in _BASE:
        forget_base()  # before the next one is loaded: there may be no room for two
        _BASE[wanted] = load_base(config.model, device, config.precision)
    return _BASE[wanted]


def forget_base() -> None:
    """Let go of the base that this process holds."""
    _BASE.clear()


_BASE: dict[str, FrozenBase] = {}


def corpus_of(config: CellConfig) -> Corpus:
    """The tokenised data of a cell."""
    tokenizer = load_tokenizer(config.model)
    return build_corpus(config.data, tokenizer, tokenizer.eos_token_id)


def _shared(cell: Cell) -> str:
    """What cells of one pack have in common, as a sortable key."""
    config = cell.config
    return repr(
        (
            config.name,
            config.results_dir,
            config.device,
            config.precision,
            config.model,
            (config.data.name, config.data.path, config.data.sequence_length, config.data.heldout),
            config.adapter.targets,
            (config.train.steps, config.train.batch_size, config.train.accumulation),
            (config.train.eval_every, config.train.answer_tokens),
            config.probes,
            config.pack,
            config.tracker,
        )
    )


def _cost(cell: Cell) -> float:
    """FLOPs of its whole training, as far as they can be told without its data: as if every token were a target."""
    config = cell.config
    tokens = config.train.batch_size * config.train.accumulation * config.data.sequence_length
    return estimate(
        config, cell.card, tokens, tokens, Contraction(config.adapter.contraction, tokens)
    ).flops
