"""Cells to packs, a pack before it trains, and its cells to folds."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from shutil import which

import torch

from study.config import AUTO_COMPILE, CellConfig
from study.data import Corpus, build_corpus
from study.errors import StudyError
from study.models import FrozenBase, load_tokenizer
from study.sweeps.cells import Cell
from study.sweeps.estimate import (
    Estimate,
    check_fits,
    check_possible,
    estimate,
    fold_bytes,
    full_estimate,
    memory_budget,
)
from study.sweeps.sharing import count
from study.training.devices import choose_device, matmul_rate
from study.training.loop import train
from study.training.run import Run

WORTH_COMPILING = 120.0
"""Seconds of a pack from which on ``pack.compile=auto`` compiles it. Compiling takes 10 to 20 s and
saves a tenth or more of a plain step."""
FOLD_GAIN = 0.98
"""Doubling a fold must bring a cell's step under this share of its time, or it is not doubled."""


# Cells that can share a process.


def packs(cells: Sequence[Cell], at_a_time: int = 1) -> list[list[Cell]]:
    """Group cells that can share a process: same base, data, shape of a step and loop.

    Each pack is ordered by rank. ``pack.max_cells`` bounds its size, so that a launcher with
    several workers has several packs to distribute. ``at_a_time``: the packs that the launcher
    trains at the same time. With ``pack.max_cells=auto`` there are as many, of about the same cost.
    """
    groups: list[list[Cell]] = []
    flops = {
        cell.folder: full_estimate(cell.config, cell.card).flops
        for cell in cells
        if cell.config.pack.max_cells == "auto"
    }
    for _, group in groupby(sorted(cells, key=_shared), key=_shared):
        ordered = sorted(group, key=lambda cell: cell.config.adapter.rank)
        most = ordered[0].config.pack.max_cells
        if most == "auto":
            own = [flops[cell.folder] for cell in ordered]
            hands = max(1, round(sum(own) / sum(flops.values()) * at_a_time))
            groups += [[ordered[place] for place in pack] for pack in deal(own, hands)]
        else:
            # Every n-th cell: packs then cost about the same. Contiguous packs would put all high
            # ranks into the last one.
            number = math.ceil(len(ordered) / (most or len(ordered)))
            groups += [ordered[start::number] for start in range(number)]
    # A launcher starts packs in this order: the longest first, so that none is left to the end.
    return sorted(groups, key=lambda pack: -sum(flops.get(cell.folder, 0.0) for cell in pack))


def deal(costs: Sequence[float], hands: int) -> list[list[int]]:
    """Places of ``costs`` in at most ``hands`` lists of about the same sum, the largest sum first.

    The largest cost goes first, and each to the list with the least so far: the largest sum is then
    at most a third above the best possible (Graham 1969, Theorem 2).
    """
    dealt: list[list[int]] = [[] for _ in range(min(hands, len(costs)))]
    least = [(0.0, hand) for hand in range(len(dealt))]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        total, hand = heapq.heappop(least)
        dealt[hand].append(place)
        heapq.heappush(least, (total + costs[place], hand))
    return [sorted(dealt[hand]) for _, hand in sorted(least, reverse=True)]


def _shared(cell: Cell) -> str:
    """What the cells of one pack have in common, as a sortable key."""
    config = cell.config
    data, train = config.data, config.train
    return repr(
        (
            (config.name, config.results_dir, config.device, config.precision, config.model),
            replace(data, seed=0),
            config.adapter.targets,
            (train.steps, train.batch_size, train.accumulation),
            (train.eval_every, train.answer_tokens, train.shard, train.checkpointing),
            (config.probes, config.pack, config.checkpoint, config.tracker),
        )
    )


# A pack before it trains.


@dataclass(frozen=True)
class Prepared:
    """One cell with its training run and its estimated cost."""

    cell: Cell
    run: Run
    estimate: Estimate


@dataclass(frozen=True)
class PreparedPack:
    """The cells of one process, ordered by rank. ``memory``: bytes that the process may use."""

    cells: Sequence[Prepared]
    device: torch.device
    corpus: Corpus
    memory: int

    @property
    def config(self) -> CellConfig:
        """The first cell's configuration: it stands for what all cells of a pack share."""
        return self.cells[0].cell.config


def prepare(
    pack: Sequence[Cell], held: int = 0, device: torch.device | None = None
) -> PreparedPack:
    """Read the data of a pack and estimate every cell. Loads no weights.

    ``held``: bytes of the base that this process holds already. ``device``: where it will train;
    None: what its configuration asks for.

    Raises :class:`StudyError` if the device is absent, if the base lacks a token of the data, if
    answers are asked for and no held-out row is a question, and if ``pack.memory_gb`` or the memory
    of the machine is too little for one of the cells alone.
    """
    config, devices = pack[0].config, count()
    device = device or choose_device(config.device)
    corpus = build_pack_corpus(config)
    corpus.check_tokens(pack[0].card.vocabulary, pack[0].card.name)
    if config.train.answer_tokens and not corpus.questions.contexts:
        raise StudyError(
            f"train.answer_tokens={config.train.answer_tokens}: no held-out row is a question (a "
            "text has none, and a conversation that was cut has lost its last turn): set it to "
            "null, or raise data.sequence_length"
        )
    compiles = config.pack.compile
    if compiles == AUTO_COMPILE:
        needs = (full_estimate(cell.config, cell.card, device.type) for cell in pack)
        seconds = sum(need.seconds(matmul_rate(device)) for need in needs)
        compiles = seconds > WORTH_COMPILING and bool(which("g++") or which("clang++"))
    cells = []
    for cell in pack:
        check_possible(cell.config, cell.card, device, devices)
        of_pack = replace(cell.config.pack, compile=compiles)
        run = Run.of(replace(cell.config, pack=of_pack), corpus, device)
        step = run.tokens, run.supervised
        need = estimate(cell.config, cell.card, *step, run.contraction, device.type)
        need = need.divided(devices)
        check_fits(cell.config, need, cell.label)
        cells.append(Prepared(cell, run, need))
    return PreparedPack(cells, device, corpus, memory_budget(config, device, held))


def build_pack_corpus(config: CellConfig) -> Corpus:
    """The tokenised data of a cell."""
    tokenizer = load_tokenizer(config.model)
    return build_corpus(config.data, tokenizer, tokenizer.eos_token_id)


# Cells that share each forward pass.


def folds(pack: PreparedPack, base: FrozenBase) -> Iterator[Sequence[Prepared]]:
    """Split a pack into folds: as many cells as fit, up to ``pack.fold``.

    ``auto`` is 1 on a CPU, where folding does not pay. On CUDA a short trial finds the fastest
    size. Four kinds of cells are trained alone:

    - infinite rank, whose adapter is another module;
    - a continued adapter, whose layers may differ in rank;
    - a cell that is divided among processes (``train.shard``);
    - an 8-bit base on CUDA, whose products depend on the whole batch
      (:mod:`study.models.quantised`).
    """
    alone = [prepared for prepared in pack.cells if _trains_alone(prepared.cell)]
    together = [prepared for prepared in pack.cells if not _trains_alone(prepared.cell)]
    if together:
        most, start = _largest_fold(pack, together, base), 0
        for size in fold_sizes([each.estimate for each in together], most, pack.memory):
            yield together[start : start + size]
            start += size
    yield from ([prepared] for prepared in alone)


def _trains_alone(cell: Cell) -> bool:
    config = cell.config
    return math.isinf(config.adapter.rank) or bool(config.adapter.path) or config.train.shard


def _largest_fold(pack: PreparedPack, together: Sequence[Prepared], base: FrozenBase) -> int:
    on_cuda = pack.device.type == "cuda"
    if on_cuda and pack.config.model.quant_bits == 8:
        return 1
    if pack.config.pack.fold != "auto":
        return int(pack.config.pack.fold)
    return fastest_fold([p.run for p in together], base, pack.corpus) if on_cuda else 1


def fold_sizes(needs: Sequence[Estimate], most: int, memory: int) -> Iterator[int]:
    """The sizes of consecutive folds: at most ``most`` cells, and at most ``memory`` bytes.

    A fold has at least one cell, even where its estimate exceeds the memory.
    """
    start = 0
    while start < len(needs):
        size = 1
        while (
            size < most
            and start + size < len(needs)
            and fold_bytes(needs[start : start + size + 1]) <= memory
        ):
            size += 1
        yield size
        start += size


def fastest_fold(runs: Sequence[Run], base: FrozenBase, corpus: Corpus) -> int:
    """The fold size with the least time per cell and step.

    Tries 1, 2, 4, ... neighbours for three steps each. Stops when doubling gains less than 2 %, or
    when cells or memory run out.
    """
    best, least = 1, math.inf
    for size in (2**i for i in range(len(runs).bit_length())):
        try:
            seconds = seconds_per_cell(runs[:size], base, corpus)
        except torch.OutOfMemoryError:
            break
        if seconds > FOLD_GAIN * least:
            break
        best, least = size, seconds
    return best


def seconds_per_cell(runs: Sequence[Run], base: FrozenBase, corpus: Corpus) -> float:
    """Seconds per cell of a plain step of a fold: the least of three, after one to warm up."""
    plain = [replace(run, config=_unmeasured(run.config)) for run in runs]
    times = [
        result.metrics["seconds"]
        for results in train(base, corpus, plain)
        for result in results[:1]
        if result
    ]
    return min(after - before for before, after in pairwise(times[:4])) / len(runs)


def _unmeasured(config: CellConfig) -> CellConfig:
    return replace(
        config,
        train=replace(config.train, steps=4, eval_every=0),
        probes=replace(config.probes, every=None, steps=None),
    )
