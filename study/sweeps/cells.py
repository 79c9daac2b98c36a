"""Configurations to cells: identified, and checked against base and data before weights load."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from study.adapters import resolve_targets
from study.adapters.experts import check_possible
from study.adapters.peft_experts import shortest_names
from study.config import (
    CellConfig,
    DataConfig,
    ModelConfig,
    Sources,
    identity,
    resolved,
    validate,
)
from study.data import build_corpus, fingerprint, load_rows
from study.errors import StudyError
from study.models import WITH_EXPERTS, Coverage, ModelCard, coverage, describe, load_tokenizer
from study.store import is_done
from study.training.peft_format import file_hash, read_adapter
from study.vocabulary.inits import IMPORTED
from study.vocabulary.scaling import rule_words


@dataclass(frozen=True)
class Cell:
    """One configuration with its identity, the card of its base and the hashes of its sources.

    ``coverage``: which of the base's weights its adapters are on. ``varied``: the configuration
    keys in which the cells planned with it differ.
    """

    id: str
    config: CellConfig
    card: ModelCard
    sources: Sources
    coverage: Coverage
    varied: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of its results: ``results_dir/name/cells/id``."""
        return self.study_dir / "cells" / self.id

    @property
    def study_dir(self) -> Path:
        """The folder of its study."""
        return Path(self.config.results_dir) / self.config.name

    @property
    def done(self) -> bool:
        """Whether it has results already."""
        return is_done(self.folder, with_adapter=self.config.train.save_adapter)

    @property
    def label(self) -> str:
        """Its name in lines of text and in trackers: ``adamw rslora rank 4 seed 0 lr 0.0001 alpha
        16.0``, and whatever else varies. A job of a launcher knows only what varies in its pack.
        """
        config, values = self.config, _values(self.config)
        rule = rule_words(config.adapter.scaling, config.adapter.exponent)
        words = [f"{config.optimizer.name} {rule} rank {config.adapter.rank} seed {config.seed}"]
        for key in (*IN_LABELS, *self.varied):
            group, _, word = key.rpartition(".")
            name = f"{group} {word}" if word in ("name", "path", "seed") else word
            words.append(f"{name} {values[key]}")
        return " ".join(words)

    @property
    def description(self) -> dict[str, Any]:
        """The part of its record that is known before it runs."""
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
    """The cell of every configuration, in order, checked against its base and its data.

    Epochs and shares become numbers of steps. Writes nothing and loads no weights. Raises
    :class:`StudyError` for

    - unknown targets, experts that can't have the adapter, or too long a sequence;
    - data, weights or an adapter that can't be read, or an adapter for another base.
    """
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
            raise StudyError(
                f"data.sequence_length={length}{more} is longer than {card.name} allows: "
                f"{'their sum may be' if answer else 'give'} at most {card.max_length}"
            )
        data = replace(config.data, seed=0)
        examples = once(_examples, config.model, data)
        counted = resolved(config, partial(once, _training_rows, config.model, data))
        if counted is not config:
            validate(counted)
            config = counted
        model = card.fingerprint + (WITH_EXPERTS if covered.experts else "")
        sources = Sources(model, card.tokenizer_fingerprint, examples, adapter)
        cells.append(Cell(identity(config, sources), config, card, sources, covered))
    varied = varied_keys([cell.config for cell in cells])
    return [replace(cell, varied=varied) for cell in cells]


def _covered(model: ModelConfig, targets: str | Sequence[str]) -> Coverage:
    card = describe(model)
    return coverage(card, resolve_targets(card.targets, targets))


def _examples(model: ModelConfig, data: DataConfig) -> str:
    """The hash of the examples. The text of a conversation depends on the tokenizer."""
    return fingerprint(load_rows(data, partial(load_tokenizer, model)).rows)


def _training_rows(model: ModelConfig, data: DataConfig) -> int:
    """The rows of one epoch."""
    tokenizer = load_tokenizer(model)
    return len(build_corpus(data, tokenizer, tokenizer.eos_token_id).train)


IN_LABELS = ("optimizer.lr", "adapter.alpha")
_NOT_VARIED = (
    *("optimizer.name", "adapter.scaling", "adapter.exponent", "adapter.rank", "seed"),
    *IN_LABELS,
)
"""The keys that every label has."""


def varied_keys(configs: Sequence[CellConfig]) -> tuple[str, ...]:
    """The keys that all ``configs`` have, in which they differ, and which a label needs.

    ``data.seed`` is among them only if it differs from ``seed``.
    """
    found = [_values(config) for config in configs]
    for config, values in zip(configs, found, strict=True):
        if config.data.seed == config.seed:
            values["data.seed"] = None
    keys = [key for key in found[0] if all(key in values for values in found)] if found else []
    varied = (key for key in keys if len({repr(values[key]) for values in found}) > 1)
    return tuple(key for key in varied if key not in _NOT_VARIED)


def _values(config: CellConfig) -> dict[str, Any]:
    """The values of a configuration by dotted key."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if is_dataclass(value):
            found |= {f"{name}.{key}": part for key, part in vars(value).items()}
        else:
            found[name] = value
    return found


def continue_adapter(config: CellConfig, card: ModelCard) -> CellConfig:
    """``config`` with the rank, alpha, rule and targets of the PEFT adapter at ``adapter.path``.

    Raises :class:`StudyError` if the adapter can't be read or is for another base.
    """
    found = read_adapter(Path(str(config.adapter.path)))
    found.check_fits(card.shapes_by_path, card.name)
    adapter = replace(
        config.adapter,
        rank=found.config["r"],
        alpha=float(found.config["lora_alpha"]),
        scaling=found.scaling,
        exponent=None,
        targets=shortest_names(found.pairs, card.targets),
        init=IMPORTED,
    )
    return replace(config, adapter=adapter)


def to_train(cells: Sequence[Cell]) -> list[Cell]:
    """The distinct cells that have no results yet. Two studies may have the same cell."""
    return [cell for cell in {cell.folder: cell for cell in cells}.values() if not cell.done]


def data_name(config: DataConfig) -> str:
    """The name of a data set in results: its file, its hub name, or its own.

    A subset and a split that were asked for follow in brackets.
    """
    if config.path is None:
        return config.name
    parts = [config.subset, config.split if config.split != DataConfig.split else None]
    asked = ", ".join(part for part in parts if part)
    return f"{config.path} ({asked})" if asked else config.path
