"""Configurations to cells: identified, and checked against base and data before weights load."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
from study.errors import StudyError, given
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
        """Its name in a line of text: ``adamw rslora rank 4 seed 0``, and whatever else varies."""
        return self._named(self.varied)

    @property
    def run_name(self) -> str:
        """Its name in a tracker: the label, with alpha and the learning rate in any case.

        A job of a launcher does not know what varies between jobs.
        """
        return self._named((*ALSO_IN_RUN_NAMES, *self.varied))

    def _named(self, keys: Sequence[str]) -> str:
        config = self.config
        rule = rule_words(config.adapter.scaling, config.adapter.exponent)
        values = _values(config, keys)
        others = [f"{_short(key)} {value}" for key, value in values.items()]
        cell = f"{config.optimizer.name} {rule} rank {config.adapter.rank} seed {config.seed}"
        return " ".join([cell, *others])

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
    - data, weights or an adapter that can't be read, or an adapter for another base;
    - a results folder that can't be written.
    """
    once = _Once()
    cells = []
    for config in configs:
        card = once(describe, config.model)
        adapter = None
        if config.adapter.path:
            adapter = file_hash(Path(config.adapter.path))
            config = continue_adapter(config, card)
        targets = config.adapter.targets
        covered = once(
            _covered, config.model, targets if isinstance(targets, str) else tuple(targets)
        )
        check_possible(covered.experts, config.adapter.rank, config.adapter.dropout)
        _check_length(config, card)
        source = DataSource(config.model, replace(config.data, seed=0))
        examples = once(DataSource.fingerprint, source)
        config = with_steps(config, partial(once, DataSource.training_rows, source))
        once(_check_writable, config.results_dir)
        model = card.fingerprint + (WITH_EXPERTS if covered.experts else "")
        sources = Sources(model, card.tokenizer_fingerprint, examples, adapter)
        cells.append(Cell(identity(config, sources), config, card, sources, covered))
    varied = varied_keys([cell.config for cell in cells])
    return [replace(cell, varied=varied) for cell in cells]


class _Once:
    """Calls a function once for the same arguments: a thousand cells share a few bases and data."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """``ask(*arguments)``."""
        key = ask, repr(arguments)
        if key not in self._known:
            self._known[key] = ask(*arguments)
        return self._known[key]


def _covered(model: ModelConfig, targets: str | Sequence[str]) -> Coverage:
    card = describe(model)
    return coverage(card, resolve_targets(card.targets, targets))


IN_EVERY_LABEL = (
    "optimizer.name",
    "adapter.scaling",
    "adapter.exponent",
    "adapter.rank",
    "seed",
)
"""The keys that the name of every cell has."""
ALSO_IN_RUN_NAMES = ("optimizer.lr", "adapter.alpha")


def varied_keys(configs: Sequence[CellConfig]) -> tuple[str, ...]:
    """The keys in which ``configs`` differ, beside :data:`IN_EVERY_LABEL`.

    ``data.seed`` is among them only if it differs from ``seed``; options that only some optimizers
    have only if they differ within one.
    """
    found: dict[str, set[str]] = {}
    for config in configs:
        values = _values(config)
        if config.data.seed == config.seed:
            del values["data.seed"]
        for key, value in values.items():
            within = f"{key} {config.optimizer.name}" if key.startswith("optimizer.") else key
            found.setdefault(within, set()).add(repr(value))
    varied = [key.partition(" ")[0] for key, values in found.items() if len(values) > 1]
    return tuple(key for key in dict.fromkeys(varied) if key not in IN_EVERY_LABEL)


def _short(key: str) -> str:
    """``lr`` for ``optimizer.lr``, but ``data seed`` for ``data.seed``."""
    group, _, word = key.rpartition(".")
    return f"{group} {word}" if word in ("name", "path", "seed") else word


def _values(config: CellConfig, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """The values of a configuration by dotted key: all, or those of ``keys`` that it has."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if is_dataclass(value):
            found |= {f"{name}.{key}": part for key, part in vars(value).items()}
        else:
            found[name] = value
    return found if keys is None else {key: found[key] for key in keys if key in found}


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


def _check_length(config: CellConfig, card: ModelCard) -> None:
    length, answer = config.data.sequence_length, config.train.answer_tokens or 0
    if length > card.max_length:
        raise StudyError(
            f"data.sequence_length={length} is longer than {card.name} allows: "
            f"give at most {card.max_length}"
        )
    if length + answer > card.max_length:
        raise StudyError(
            f"train.answer_tokens={answer} after data.sequence_length={length} is longer than "
            f"{card.name} allows: their sum may be at most {card.max_length}"
        )


def _check_writable(results_dir: str) -> None:
    """Make a folder in the nearest folder that exists, and remove it: some file systems, such as
    /proc, allow it by their permissions and refuse it.
    """
    folder = Path(results_dir).absolute()
    nearest = folder
    try:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        with TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise StudyError(
            f"results_dir={given(results_dir)} can't be written ({given(str(nearest))}: "
            f"{error.strerror}): give another results_dir"
        ) from None


# The data of a cell before it trains.


@dataclass(frozen=True)
class DataSource:
    """A data set as one base reads it: the text of a conversation and the number of rows that fit
    depend on the tokenizer. Nothing here depends on ``data.seed``.
    """

    model: ModelConfig
    data: DataConfig

    def fingerprint(self) -> str:
        """The hash of the examples."""
        return fingerprint(load_rows(self.data, partial(load_tokenizer, self.model)).rows)

    def training_rows(self) -> int:
        """The rows of one epoch."""
        tokenizer = load_tokenizer(self.model)
        return len(build_corpus(self.data, tokenizer, tokenizer.eos_token_id).train)


def with_steps(config: CellConfig, rows: Callable[[], int]) -> CellConfig:
    """``config`` with whole numbers of steps (:func:`study.config.resolved`), checked again.

    ``rows`` counts the training rows; it is called for epochs only.
    """
    found = resolved(config, rows)
    if found is not config:
        validate(found)
    return found


def data_name(config: DataConfig) -> str:
    """The name of a data set in results: its file, its hub name, or its own.

    A subset and a split that were asked for follow in brackets.
    """
    if config.path is None:
        return config.name
    parts = [config.subset, config.split if config.split != DataConfig.split else None]
    asked = ", ".join(part for part in parts if part)
    return f"{config.path} ({asked})" if asked else config.path
