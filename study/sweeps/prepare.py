"""A pack before it trains: its device, its corpus, and what each cell needs. Computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from study.config import CellConfig
from study.data import Corpus, build_corpus
from study.errors import StudyError
from study.models import load_tokenizer
from study.sweeps import processes
from study.sweeps.cells import Cell
from study.sweeps.estimate import Estimate, check_fits, check_possible, estimate, memory_budget
from study.training.devices import choose_device
from study.training.run import Run


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
    config = pack[0].config
    device = device or choose_device(config.device)
    corpus = build_pack_corpus(config)
    corpus.check_tokens(pack[0].card.vocabulary, pack[0].card.name)
    _check_questions(config, corpus)
    cells = [_prepare_cell(cell, corpus, device) for cell in pack]
    return PreparedPack(cells, device, corpus, memory_budget(config, device, held))


def _prepare_cell(cell: Cell, corpus: Corpus, device: torch.device) -> Prepared:
    devices = processes.count()
    check_possible(cell.config, cell.card, device, devices)
    run = Run.of(cell.config, corpus, device)
    batch = run.tokens, run.supervised
    need = estimate(cell.config, cell.card, *batch, run.contraction, device.type)
    need = need.divided(devices)
    check_fits(cell.config, need, cell.label)
    return Prepared(cell, run, need)


def _check_questions(config: CellConfig, corpus: Corpus) -> None:
    if config.train.answer_tokens and not corpus.questions.contexts:
        raise StudyError(
            f"train.answer_tokens={config.train.answer_tokens}: no held-out row is a question (a "
            "text has none, and a conversation that was cut has lost its last turn): set it to "
            "null, or raise data.sequence_length"
        )


def build_pack_corpus(config: CellConfig) -> Corpus:
    """The tokenised data of a cell."""
    tokenizer = load_tokenizer(config.model)
    return build_corpus(config.data, tokenizer, tokenizer.eos_token_id)
