"""One cell for the training loop: its configuration, and derived values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from study.adapters import AdapterSpec, Contraction
from study.config import CellConfig
from study.data import Corpus, TokenTable
from study.training.peft_format import read_adapter

COMPILED_COLUMNS = 64
"""Compiled blocks get batches whose columns are a multiple of this: each shape is a program."""
PAYS = 0.9
"""``pack.padding_free=auto`` leaves out padding if at most this share of a batch is real."""
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
    def of(cls, config: CellConfig, corpus: Corpus) -> Self:
        """The run of ``config`` on ``corpus``. Builds eight batches to count their tokens."""
        tokens, supervised = typical_step(config, corpus)
        form = config.adapter.contraction
        if config.train.shard:  # merged products would need whole factors between passes
            form = config.bf16_form or "factored"
        return cls(config, adapter_spec(config), tokens, supervised, Contraction(form, tokens))


def adapter_spec(config: CellConfig) -> AdapterSpec:
    """How a cell's adapters are drawn; at infinite rank with the limit of ``gamma *
    sqrt(rank)``."""
    adapter = config.adapter
    gamma = adapter.alpha if math.isinf(adapter.rank) else adapter.gamma
    start = read_adapter(Path(adapter.path)).pairs if adapter.path else None
    return AdapterSpec(adapter.rank, gamma, config.seed, adapter.dropout, adapter.init, start)


def typical_step(config: CellConfig, corpus: Corpus) -> tuple[int, int]:
    """Tokens of a cell in one optimizer step, and those with a loss: means over the first
    batches."""
    size = config.train.batch_size, config.train.accumulation
    free = config.pack.padding_free if may_leave_out_padding([config]) else False
    return _typical_step(corpus.train, config.data.seed, *size, columns([config]), free)


@lru_cache(maxsize=1024)
def _typical_step(
    table: TokenTable,
    seed: int,
    batch_size: int,
    accumulation: int,
    multiple: int,
    padding_free: bool | str,
) -> tuple[int, int]:
    """:func:`typical_step`; a thousand cells of a sweep have a few orders of their batches."""
    tokens = supervised = 0
    for position in range(SAMPLED_BATCHES):
        batch = table.batch(seed, position, batch_size)
        supervised += batch.supervised
        batch = batch.trimmed(multiple)
        real, places = int(batch.real_BT.sum()), batch.real_BT.numel()
        tokens += real if padding_free and pays(padding_free, real, places) else places
    return tokens * accumulation // SAMPLED_BATCHES, supervised * accumulation // SAMPLED_BATCHES


def columns(cells: Sequence[CellConfig]) -> int:
    """A batch keeps a multiple of this many columns; further padding is cut off. With dropout all
    padding stays: the shape of a cell's mask must not depend on the other cells of its fold.
    """
    if any(cell.adapter.dropout for cell in cells):
        return cells[0].data.sequence_length
    return COMPILED_COLUMNS if cells[0].pack.compile is True else 1


def may_leave_out_padding(cells: Sequence[CellConfig]) -> bool:
    """Whether the real tokens of a batch may share one row, if the base separates sequences."""
    shared = cells[0]
    allowed = shared.pack.padding_free is not False and not shared.train.shard
    return allowed and columns(cells) == 1


def pays(padding_free: bool | str, real: int, places: int) -> bool:
    """Whether to compute ``real`` tokens in one row instead of ``places`` with padding."""
    return padding_free is True or real <= PAYS * places
