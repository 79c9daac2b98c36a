"""Configurations to cells: each identified and checked against its base and its data, before any weight is loaded."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from study.adapters import resolve_targets
from study.adapters.peft_format import file_hash, read_adapter, shortest_names
from study.config import CellConfig, DataConfig, ModelConfig, Sources, identity
from study.data import fingerprint, load_examples
from study.errors import StudyError
from study.models import ModelCard, describe
from study.store import is_done
from study.vocabulary.inits import IMPORTED


@dataclass(frozen=True)
class Cell:
    """One configuration with its identity, the card of its base and the hashes of what it reads."""

    id: str
    config: CellConfig
    card: ModelCard
    sources: Sources

    @property
    def folder(self) -> Path:
        """Where its results are: ``results_dir/name/cells/id``."""
        return self.study_dir / "cells" / self.id

    @property
    def study_dir(self) -> Path:
        """The folder of its study."""
        return Path(self.config.results_dir) / self.config.name

    @property
    def done(self) -> bool:
        """Whether its results are there already."""
        return is_done(self.folder, with_adapter=self.config.train.save_adapter)

    @property
    def label(self) -> str:
        """What to call it in a line."""
        config = self.config
        return f"{config.optimizer.name} {config.adapter.scaling} rank {config.adapter.rank} seed {config.seed}"

    @property
    def description(self) -> dict[str, Any]:
        """What its record says of it before it runs."""
        return {
            "cell_id": self.id,
            "study": self.config.name,
            "model": self.card.name,
            "model_note": self.card.note,
            "data": self.config.data.name
            if self.config.data.path is None
            else self.config.data.path,
            "gamma": self.config.adapter.gamma,
            "config": asdict(self.config),
        }


def plan(configs: Iterable[CellConfig]) -> list[Cell]:
    """The cell of every config, in order, identified and checked against its base and its data.

    Nothing is written and no weights of a base are loaded. Raises :class:`StudyError` for unknown targets, a sequence
    longer than the model allows, data, weights or an adapter that can't be read, an adapter for another base, or a
    results folder that can't be written.
    """
    cards: dict[str, ModelCard] = {}
    data: dict[str, str] = {}
    cells = []
    for config in configs:
        card = _once(cards, config.model, describe)
        adapter = None
        if config.adapter.path:
            folder = Path(config.adapter.path)
            config, adapter = going_on(config, card), file_hash(folder)
        resolve_targets(card.linears, config.adapter.targets)
        if config.data.sequence_length > card.max_length:
            raise StudyError(
                f"data.sequence_length={config.data.sequence_length} is longer than {card.name} allows: "
                f"give at most {card.max_length}"
            )
        answer = config.train.answer_tokens or 0
        if config.data.sequence_length + answer > card.max_length:
            raise StudyError(
                f"train.answer_tokens={answer} behind data.sequence_length={config.data.sequence_length} is longer "
                f"than {card.name} allows: together give at most {card.max_length}"
            )
        examples = _once(
            data,
            DataConfig(config.data.name, config.data.path),
            lambda d: fingerprint(load_examples(d)),
        )
        _check_writable(Path(config.results_dir))
        sources = Sources(card.fingerprint, card.tokenizer_fingerprint, examples, adapter)
        cells.append(Cell(identity(config, sources), config, card, sources))
    return cells


def going_on(config: CellConfig, card: ModelCard) -> CellConfig:
    """``config`` with what the PEFT adapter at ``adapter.path`` brings: rank, alpha, rule and targets.

    Raises :class:`StudyError` for one that can't be read or is for another base.
    """
    found = read_adapter(Path(str(config.adapter.path)))
    found.check_fits(dict(zip(card.linears, card.shapes, strict=True)), card.name)
    brought = {
        "rank": found.config["r"],
        "alpha": float(found.config["lora_alpha"]),
        "scaling": found.scaling,
    }
    targets = shortest_names(found.pairs, card.linears)
    own = replace(config.adapter, **brought, exponent=None, targets=targets, init=IMPORTED)
    return replace(config, adapter=own)


def to_train(cells: Sequence[Cell]) -> list[Cell]:
    """The distinct cells whose results are not there yet."""
    return [cell for cell in {cell.id: cell for cell in cells}.values() if not cell.done]


def _once(known: dict[str, Any], config: ModelConfig | DataConfig, ask: Any) -> Any:
    """``ask(config)``, asked once per distinct config: a thousand cells share a handful."""
    key = repr(config)
    if key not in known:
        known[key] = ask(config)
    return known[key]


def _check_writable(results_dir: Path) -> None:
    nearest = next(
        folder
        for folder in (results_dir.absolute(), *results_dir.absolute().parents)
        if folder.exists()
    )
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "not a folder" if not nearest.is_dir() else "not writable"
        raise StudyError(
            f"results_dir={results_dir} can't be written ({nearest} is {what}): give another results_dir"
        )
