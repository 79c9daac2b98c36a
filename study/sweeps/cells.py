"""Configurations to cells: identified, and checked against base and data before weights load."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from study.adapters import resolve_targets
from study.adapters.experts import check_possible
from study.config import CellConfig, DataConfig, ModelConfig, Sources, identity, resolved, validate
from study.data import fingerprint, load_rows
from study.data.batches import Corpus, build_corpus
from study.errors import StudyError, given
from study.models import WITH_EXPERTS, Coverage, ModelCard, coverage, describe, load_tokenizer
from study.models.card import in_block
from study.store import cell_row, is_done
from study.training.peft_format import file_hash, read_adapter, shortest_names
from study.vocabulary.inits import IMPORTED
from study.vocabulary.peft_fields import MAMBAS, OF_MAMBA
from study.vocabulary.scaling import FULL, rule_words


@dataclass(frozen=True)
class Cell:
    """One configuration with its identity and what it was planned with. ``label``: its name in
    lines of text, with the settings that vary among the cells planned with it."""

    id: str
    config: CellConfig
    card: ModelCard
    sources: Sources
    coverage: Coverage
    label: str = ""

    @property
    def folder(self) -> Path:
        return self.study_dir / "cells" / self.id

    @property
    def study_dir(self) -> Path:
        return Path(self.config.results_dir) / self.config.name

    @property
    def done(self) -> bool:
        return is_done(self.folder, with_adapter=self.config.train.save_adapter)

    @property
    def description(self) -> dict[str, Any]:
        config = asdict(self.config)
        expects = config.pop("expects")
        return {
            "cell_id": self.id,
            "study": self.config.name,
            "model": self.card.name,
            "model_note": self.card.note,
            "data": data_name(self.config.data),
            "gamma": self.config.adapter.gamma,
            "adapted_share": self.coverage.share,
            "not_adapted": list(self.coverage.without),
            "config": config,
            **({"expects": expects} if expects else {}),
        }


def plan(configs: Iterable[CellConfig]) -> list[Cell]:
    """The cell of every configuration, in order, checked. Loads no weights and writes nothing."""
    known: dict[Any, Any] = {}

    def once(ask: Callable[..., Any], *arguments: Any) -> Any:
        """``ask(*arguments)``, once: a thousand cells share a few bases and data."""
        key = ask, repr(arguments)
        if key not in known:
            known[key] = ask(*arguments)
        return known[key]

    cells = []
    for config in configs:
        card = once(describe, config.model)
        adapter = None
        if config.adapter.path:
            adapter = file_hash(Path(config.adapter.path))
            config = continue_adapter(config, card)
        covered = once(_covered, config.model, config.adapter.targets)
        check_possible(covered.experts, config.adapter.rank, config.adapter.dropout)
        length, answer = config.data.sequence_length, config.train.answer_tokens or 0
        if length + answer > card.max_length:
            more = f" with train.answer_tokens={answer}" if answer else ""
            too_long = f"data.sequence_length={length}{more} is longer than {card.name} allows"
            raise StudyError(f"{too_long}: give at most {card.max_length} in all")
        data = replace(config.data, seed=0)
        examples, rows = once(_examples, config.model, data)
        if config.train.batch_size > rows:
            why = f"train.batch_size={config.train.batch_size}, but {data_name(config.data)} has"
            raise StudyError(f"{why} {rows} rows: give at most {rows}")
        config = resolved(config, partial(once, _training_rows, config.model, data))
        validate(config)
        if form := config.bf16_form:  # as its record says
            config = replace(config, adapter=replace(config.adapter, contraction=form))
        model = card.fingerprint + (WITH_EXPERTS if covered.experts else "")
        sources = Sources(model, card.tokenizer_fingerprint, examples, adapter)
        cells.append(Cell(identity(config, sources), config, card, sources, covered))
    return [replace(cell, label=label) for cell, label in zip(cells, _labels(cells), strict=True)]


def _covered(model: ModelConfig, targets: str | Sequence[str]) -> Coverage:
    card = describe(model)
    layers = resolve_targets(card.shapes, targets)
    kinds = {layer: layer.rpartition(".")[2] for layer in layers}
    if card.family in MAMBAS and (refused := [path for path in layers if kinds[path] in OF_MAMBA]):
        others = ",".join(sorted({*kinds.values()} - {*OF_MAMBA})) or "in_proj"
        why = f"adapter.targets={given(targets)} selects {in_block(refused[0])} of {card.family}"
        raise StudyError(f"{why}, which PEFT refuses to adapt: give adapter.targets=[{others}]")
    return coverage(card, layers)


def _examples(model: ModelConfig, data: DataConfig) -> tuple[str, int]:
    """The hash of the examples, and how many. The text of a conversation depends on the
    tokenizer."""
    rows = load_rows(data, partial(load_tokenizer, model)).rows
    return fingerprint(rows), len(rows)


def corpus_of(model: ModelConfig, data: DataConfig) -> Corpus:
    tokenizer = load_tokenizer(model)
    return build_corpus(data, tokenizer, tokenizer.eos_token_id)


def _training_rows(model: ModelConfig, data: DataConfig) -> int:
    return len(corpus_of(model, data).train)


_NOT_NAMED = (
    *("cell_id", "study", "gamma", "adapted_share", "optimizer", "scaling", "exponent", "rank"),
    *("crossover", "seed", "lr", "alpha", "contraction"),
)
"""Columns of ``cells`` that every label has, or that none has."""


def _labels(cells: Sequence[Cell]) -> Iterator[str]:
    """The names of cells. ``data_seed`` is named only if it differs from ``seed``."""
    rows = pd.DataFrame([cell_row(cell.description) for cell in cells])
    varied = [c for c in rows if c not in _NOT_NAMED and rows[c].nunique(dropna=False) > 1]
    if "data_seed" in varied and (rows["data_seed"] == rows["seed"]).all():
        varied.remove("data_seed")
    for cell, row in zip(cells, rows.to_dict("records"), strict=True):
        config, adapter = cell.config, cell.config.adapter
        rule = rule_words(adapter.scaling, adapter.exponent, adapter.crossover)
        values = {name: row.get(name) for name in ("lr", "alpha", "contraction", *varied)}
        words = [f"{name} {value}" for name, value in values.items() if pd.notna(value)]
        which = rule if rule == FULL else f"{rule} rank {adapter.rank}"
        cell_name = f"{config.optimizer.name} {which} seed {config.seed}"
        yield " ".join([cell_name, *words])


def continue_adapter(config: CellConfig, card: ModelCard) -> CellConfig:
    """``config`` with the rank, alpha, rule and targets of the PEFT adapter at ``adapter.path``."""
    found = read_adapter(Path(str(config.adapter.path)))
    found.check_fits(card.shapes, card.name)
    adapter = replace(
        config.adapter,
        rank=found.config["r"],
        alpha=float(found.config["lora_alpha"]),
        scaling=found.scaling,
        exponent=None,
        targets=shortest_names(found.pairs, card.shapes),
        init=IMPORTED,
    )
    return replace(config, adapter=adapter)


def to_train(cells: Sequence[Cell]) -> list[Cell]:
    """The distinct cells that have no results yet. Two studies may have the same cell."""
    return [cell for cell in {cell.folder: cell for cell in cells}.values() if not cell.done]


def data_name(config: DataConfig) -> str:
    """The name of a data set in results, with the subset and split that were asked for."""
    if config.path is None:
        return config.name
    parts = [config.subset, config.split if config.split != DataConfig.split else None]
    asked = ", ".join(part for part in parts if part)
    path = config.path if isinstance(config.path, str) else ", ".join(config.path)
    return f"{path} ({asked})" if asked else path
