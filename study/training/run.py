"""One cell as the training loop sees it: its configuration, and what follows from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import torch

from study.adapters import AdapterSpec, Contraction
from study.adapters.processes import ALONE, Processes
from study.config import CellConfig
from study.data import Corpus, TokenTable
from study.models import FrozenBase
from study.training.peft_format import read_adapter

SAMPLED_BATCHES = 8
"""Batches that :func:`typical_step` averages over."""


@dataclass(frozen=True)
class Run:
    """One training run.

    - ``config``: the cell's configuration;
    - ``adapter``: how its adapters are drawn;
    - ``tokens``, ``supervised``: tokens of a typical optimizer step, and those that carry a loss;
    - ``contraction``: how the adapters' products are computed for that many tokens.
    """

    config: CellConfig
    adapter: AdapterSpec
    tokens: int
    supervised: int
    contraction: Contraction

    @classmethod
    def of(cls, config: CellConfig, corpus: Corpus, device: torch.device) -> Self:
        """The run of ``config`` on ``corpus``. Builds eight batches to count their tokens."""
        tokens, supervised = typical_step(config, corpus, device)
        form = config.adapter.contraction
        if config.train.shard:  # only factored products leave the factors divided between passes
            form = "factored"
        return cls(config, adapter_spec(config), tokens, supervised, Contraction(form, tokens))


def adapter_spec(config: CellConfig) -> AdapterSpec:
    """How a cell's adapters are drawn.

    At infinite rank ``gamma`` is 0, so the spec holds the limit of ``gamma * sqrt(rank)`` instead.
    """
    adapter = config.adapter
    gamma = adapter.alpha if math.isinf(adapter.rank) else adapter.gamma
    start = read_adapter(Path(adapter.path)).pairs if adapter.path else None
    return AdapterSpec(adapter.rank, gamma, config.seed, adapter.dropout, adapter.init, start)


def typical_step(config: CellConfig, corpus: Corpus, device: torch.device) -> tuple[int, int]:
    """Tokens that a cell sends through the model in one optimizer step, and those with a loss.

    Both are means over the first batches.
    """
    size = config.train.batch_size, config.train.accumulation
    return _typical_step(corpus.train, config.data.seed, *size, may_trim([config], device))


@lru_cache(maxsize=1024)
def _typical_step(
    table: TokenTable, seed: int, batch_size: int, accumulation: int, trimmed: bool
) -> tuple[int, int]:
    """:func:`typical_step`; a thousand cells of a sweep have a few orders of their batches."""
    batches = [table.batch(seed, position, batch_size) for position in range(SAMPLED_BATCHES)]
    if trimmed:
        batches = [batch.trimmed() for batch in batches]
    tokens = sum(batch.input_ids_BT.numel() for batch in batches)
    supervised = sum(batch.supervised for batch in batches)
    return tokens * accumulation // SAMPLED_BATCHES, supervised * accumulation // SAMPLED_BATCHES


def may_trim(cells: Sequence[CellConfig], device: torch.device) -> bool:
    """Whether columns of padding may be cut off a batch.

    Not if blocks are to be compiled, for one shape. Not under dropout: the shape of a cell's mask
    would depend on the other cells of its fold.
    """
    fixed_shape = any(cell.adapter.dropout or cell.pack.compile is True for cell in cells)
    return device.type == "cpu" and not fixed_shape


def may_leave_out_padding(
    cells: Sequence[CellConfig], base: FrozenBase, world: Processes = ALONE
) -> bool:
    """Whether the real tokens of a batch may stand in one row.

    Not if blocks are compiled, for one shape; not under dropout (:func:`may_trim`); not if several
    processes share a batch, by its rows; not if the base attends to more than one sequence.
    """
    fixed_shape = any(cell.adapter.dropout or cell.pack.compile is True for cell in cells)
    allowed = not fixed_shape and world.size == 1 and cells[0].pack.padding_free is not False
    return allowed and base.separates_sequences
