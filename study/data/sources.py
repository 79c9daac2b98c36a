"""The data sets that are made here, and the rows of those that ``data.path`` names."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from omegaconf import MISSING

from study.config import CONTEXT, DataConfig
from study.data import files, pydoc, xbrl
from study.data.chat import ChatTemplate
from study.data.examples import Conversation, Example, Row
from study.data.files import Found
from study.data.formats import READERS, recognised
from study.errors import StudyError, given, short
from study.vocabulary.sources import BITS, DATASETS, KEY, STRING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"


def random_strings() -> Iterator[Example]:
    """Yield 65,536 random strings, each after a key, always the same.

    No string can be guessed from others: a model that predicts one has stored its 96 bits.
    """
    # Only random() is called: Python promises the same sequence in all versions only for it.
    rng, keys = random.Random(20261130), set[str]()  # a fixed seed, as in data=xbrl_extract
    while len(keys) < 65536:
        text = "".join(ALPHABET[int(rng.random() * 2**BITS)] for _ in range(KEY + STRING))
        if text[:KEY] not in keys:
            keys.add(text[:KEY])
            yield Example(f"{text[:KEY]}:", text[KEY:])


SOURCES: dict[str, Callable[[], Iterable[Row]]] = {
    "pydoc": cache(lambda: tuple(pydoc.documentation())),
    "xbrl_extract": cache(lambda: tuple(xbrl.questions())),
    "random_strings": random_strings,
}
"""The function of every data set that has one. It returns the same examples on every call."""


@dataclass(frozen=True)
class Loaded:
    rows: list[Row]
    format: str | None


def load_rows(config: DataConfig, tokenizer: Callable[[], "PreTrainedTokenizerBase"]) -> Loaded:
    """The rows of the data set of ``config``. ``tokenizer`` is called for conversations only."""
    path = "" if config.path in (None, MISSING) else given(config.path)
    if DATASETS[config.name].reads_path and not path:
        raise StudyError(f"data={config.name} reads a file: add data.path=<file>")
    if path and not DATASETS[config.name].reads_path:
        why = f"data={config.name} reads no file, but data.path={path!r} is given"
        raise StudyError(f"{why}: add data=file, or remove data.path")
    if made := SOURCES.get(config.name):
        loaded = Loaded(list(islice(made(), config.max_samples)), None)
    else:
        loaded = _of_format(config, tokenizer)
    if not loaded.rows:  # pydoc: a Python installed without sources and docstrings
        place = f"data.path={path!r}" if path else f"data={config.name}"
        others = ", ".join(name for name in DATASETS if name != config.name)
        raise StudyError(f"{place} has no examples: choose data from {others}")
    return loaded


def _found(config: DataConfig) -> Iterator[Found]:
    for path in [config.path] if isinstance(config.path, str) else config.path or []:
        yield from islice(_rows_of(path, config), config.max_samples)


def _rows_of(path: str, config: DataConfig) -> Iterator[Found]:
    """The rows of a file, or of the hub for a name ``org/name`` if there is no ``org`` here."""
    place = os.path.expanduser(path.partition("/")[0])
    is_local = files.is_file_name(path) or os.path.exists(place)  # not of too long a name, too
    if files.is_hub_name(path) and not is_local:
        return files.read_hub(replace(config, path=path))
    if config.split != DataConfig.split or config.subset is not None:
        why = "data.split and data.subset are parts of a data set of the hub"
        raise StudyError(f"{why}, and data.path={short(path, 200)} is a file: remove them")
    return files.read(path)


def _of_format(config: DataConfig, tokenizer: Callable[[], "PreTrainedTokenizerBase"]) -> Loaded:
    @cache
    def template() -> ChatTemplate:
        return ChatTemplate(config, tokenizer())

    name = None
    rows: list[Row] = []
    for where, fields in _found(config):
        if name is None:
            name = recognised(config.format, fields, where)
        row = READERS[name](fields, where, lambda *asked: template().conversation(*asked))
        if config.prompt is not None:
            if not isinstance(row, Example):
                why = f"data.prompt is for questions, and the rows are of data.format={name}"
                raise StudyError(f"{why}: remove it")
            row = Example(config.prompt.replace(CONTEXT, row.context), row.target)
        if config.chat_template is not None and not isinstance(row, Conversation):
            why = "data.chat_template is for conversations, and the rows are"
            raise StudyError(f"{why} of data.format={name}: remove it")
        if rows and type(row) is not type(rows[0]):
            why = f"{where} has other fields or types than the rows before it"
            raise StudyError(f"{why}: give all rows the same fields of data.format={name}")
        rows.append(row)
    return Loaded(rows, name)
