"""Cells to packs, a pack before it trains, and its cells to folds."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from study.config import CellConfig
from study.data.batches import Corpus
from study.errors import StudyError
from study.sweeps.cells import Cell, corpus_of
from study.sweeps.estimate import (
    Estimate,
    check_fits,
    estimate,
    fold_bytes,
    full_estimate,
    memory_budget,
)
from study.training.devices import choose_device
from study.training.fold import contraction_of, typical_step
from study.training.sharding import count

FOLD = {"cpu": 16, "cuda": 8}
"""The most cells in a fold with ``pack.fold=auto``. On a CPU, ``tiny`` and a base four times as
wide are no faster in folds of 32."""


def packs(cells: Sequence[Cell], at_a_time: int = 1) -> list[list[Cell]]:
    """Group cells that can share a process: same base, data, shape of a step and loop.

    Each pack is ordered by rank, and the one with the highest cost comes first. ``pack.max_cells``
    bounds its size. With ``auto`` there are as many as are trained ``at_a_time``.
    """
    cost = {cell.folder: full_estimate(cell.config, cell.card).flops for cell in cells}
    found: list[tuple[float, list[Cell]]] = []
    for _, group in groupby(sorted(cells, key=_shared), key=_shared):
        ordered = sorted(group, key=lambda cell: cell.config.adapter.rank)
        costs = [cost[cell.folder] for cell in ordered]
        most = ordered[0].config.pack.max_cells
        if most == "auto":
            share = sum(costs) / sum(cost.values())
            dealt = deal(costs, max(1, round(share * at_a_time)), len(costs))
        else:
            size = most or len(costs)
            dealt = deal(costs, math.ceil(len(costs) / size), size)
        for places in dealt:
            found.append((sum(costs[n] for n in places), [ordered[n] for n in sorted(places)]))
    return [pack for _, pack in sorted(found, key=lambda each: -each[0])]


def deal(costs: Sequence[float], hands: int, size: int) -> list[list[int]]:
    """Places of ``costs`` in at most ``hands`` lists of about the same sum, each of at most
    ``size``.

    The largest cost goes first, and each to the list with the least so far: without a bound, the
    largest sum is at most a third above the best possible (Graham 1969, Theorem 2).
    """
    dealt: list[list[int]] = [[] for _ in range(min(hands, len(costs)))]
    sums = [0.0] * len(dealt)
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        open_hands = (hand for hand in range(len(dealt)) if len(dealt[hand]) < size)
        hand = min(open_hands, key=lambda hand: sums[hand])
        dealt[hand].append(place)
        sums[hand] += costs[place]
    return dealt


def _shared(cell: Cell) -> str:
    """The settings that the cells of one pack share, as a sortable key."""
    config = cell.config
    data, train = config.data, config.train
    return repr(
        (
            (config.name, config.results_dir, config.device, config.precision, config.model),
            replace(data, seed=0),
            (config.adapter.targets, config.adapter.contraction),
            (train.steps, train.batch_size, train.accumulation),
            (train.eval_every, train.answer_tokens, train.example_losses),
            (train.shard, train.checkpointing),
            (config.probes, config.pack, config.checkpoint, config.tracker),
        )
    )


@dataclass(frozen=True)
class Pack:
    """The cells of one process, ordered by rank; what each takes, by its id; and their data."""

    cells: Sequence[Cell]
    needs: Mapping[str, Estimate]
    device: torch.device
    corpus: Corpus

    @property
    def config(self) -> CellConfig:
        """The first cell's configuration, for settings that all cells of a pack share."""
        return self.cells[0].config


def prepare(cells: Sequence[Cell], device: torch.device | None = None) -> Pack:
    """Read the data of a pack and estimate every cell. Loads no weights."""
    config, train = cells[0].config, cells[0].config.train
    device = device or choose_device(config.device)
    corpus = corpus_of(config.model, config.data)
    corpus.check_tokens(cells[0].card.vocabulary, cells[0].card.name)
    if train.answer_tokens and not corpus.questions.contexts:
        raise StudyError(
            f"train.answer_tokens={train.answer_tokens}: no held-out row is a question that fits "
            "into data.sequence_length: set it to null, or raise the length"
        )
    needs = {}
    for cell in cells:
        step, form = typical_step(cell.config, corpus), contraction_of(cell.config, corpus)
        need = estimate(cell.config, cell.card, *step, form, device.type)
        if count() == 1:  # otherwise each of several devices takes a part
            check_fits(cell.config, fold_bytes([need]), device)
        needs[cell.id] = need
    return Pack(cells, needs, device, corpus)


def folds(pack: Pack) -> list[list[Cell]]:
    """Split a pack into folds, whose cells share each forward pass: at most ``pack.fold`` that fit
    into the memory. The base is loaded already.

    ``auto`` on a CPU: cells that gain from it, as many as fill a pass. A process takes as large a
    share of the memory as of the cores. The cells of the first seed come first, and of these the
    lowest and the highest rank, so that a study has its first exponents early.

    Trained alone, after the others: infinite rank, whose adapter is another module; a continued
    adapter, whose layers may differ in rank; a cell divided among processes; an 8-bit base on CUDA.
    """
    config, device = pack.config, pack.device.type
    by_gain = config.pack.fold == "auto" and device == "cpu"
    most = FOLD[device] if config.pack.fold == "auto" else int(config.pack.fold)
    if config.model.quant_bits == 8 and device == "cuda":
        most = 1
    first = min(cell.config.seed for cell in pack.cells)
    memory = memory_budget(config, pack.device, pack.needs[pack.cells[0].id].base_bytes)
    if by_gain and config.pack.memory_gb is None:
        memory = int(memory * min(1.0, torch.get_num_threads() / (os.cpu_count() or 1)))

    def fits(fold: Sequence[Cell]) -> bool:
        needs = [pack.needs[cell.id] for cell in fold]
        is_full = by_gain and sum(need.fills for need in needs) > 1
        return len(fold) <= most and not is_full and fold_bytes(needs) <= memory

    def waits(cell: Cell) -> bool:
        return by_gain and cell.config.seed > first

    alone: list[list[Cell]] = []
    found: list[list[Cell]] = []
    for cell in sorted(pack.cells, key=lambda cell: (waits(cell), cell.config.adapter.rank)):
        own = cell.config
        is_alone = math.isinf(own.adapter.rank) or own.adapter.path or own.train.shard
        if is_alone or (by_gain and not pack.needs[cell.id].gains):
            alone.append([cell])
        elif found and waits(found[-1][0]) == waits(cell) and fits([*found[-1], cell]):
            found[-1].append(cell)
        else:
            found.append([cell])
    ranks = sorted({cell.config.adapter.rank for cell in pack.cells} - {math.inf})
    order = [*ranks[:1], *ranks[-1:], *ranks[1:-1], math.inf]

    def place(fold: Sequence[Cell]) -> tuple[bool, int]:
        return waits(fold[0]), min(order.index(cell.config.adapter.rank) for cell in fold)

    return sorted(found + alone, key=place)
