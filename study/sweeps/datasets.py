"""The data of a cell before it trains: its name, its content hash and the steps of its epochs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from study.config import CellConfig, DataConfig, ModelConfig, resolved, validate
from study.data import build_corpus, fingerprint, load_rows
from study.models import load_tokenizer


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
