"""What a cell's configuration means for its banks: how adapters begin, and by which form they are multiplied out."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from study.adapters import AdapterSpec, Contraction, merged_rate
from study.adapters.peft_format import read_adapter
from study.config import CellConfig
from study.data import Corpus


def adapter_spec(config: CellConfig) -> AdapterSpec:
    """How a cell's adapters are drawn. At infinite rank gamma is 0; what tells runs apart is ``gamma * sqrt(rank)``."""
    adapter = config.adapter
    gamma = adapter.alpha if math.isinf(adapter.rank) else adapter.gamma
    start = read_adapter(Path(adapter.path)).pairs if adapter.path else None
    return AdapterSpec(adapter.rank, gamma, config.seed, adapter.dropout, adapter.init, start)


def typical_step(config: CellConfig, corpus: Corpus, device: torch.device) -> tuple[int, int]:
    """How many tokens a cell sends through the model in one optimizer step, and on how many there is a loss: the mean
    of its first batches."""
    train, sample = config.train, 8
    batches = [corpus.train.batch(config.data.seed, position, train.batch_size) for position in range(sample)]
    if may_trim([config], device):
        batches = [batch.trimmed() for batch in batches]
    totals = (sum(b.input_ids_BT.numel() for b in batches), sum(b.supervised for b in batches))
    tokens, supervised = (total * train.accumulation // sample for total in totals)
    return tokens, supervised


def contraction(config: CellConfig, corpus: Corpus, device: torch.device) -> Contraction:
    """How a cell's adapters are multiplied out, by the tokens that go through them in a typical step."""
    tokens, _ = typical_step(config, corpus, device)
    return Contraction(config.adapter.contraction, tokens, merged_rate(device))


def may_trim(cells: Sequence[CellConfig], device: torch.device) -> bool:
    """Whether columns of padding may be left out: nothing is compiled for one shape, and no dropout mask is drawn in a
    shape that a cell's neighbours would have a say in."""
    return device.type == "cpu" and not any(cell.adapter.dropout or cell.pack.compile for cell in cells)
