"""The data sets: one function for each row of :data:`study.vocabulary.sources.DATASETS`."""

import json
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from omegaconf import MISSING

from study.config import DataConfig
from study.data import jsonl, pydoc, xbrl
from study.data.examples import Example
from study.errors import StudyError, unknown
from study.store.cache import kept_arrays
from study.vocabulary.sources import DATASETS

Reader = Callable[[str], Iterable[Example]]
"""Returns a data set's examples in its own order, the same on every call. The argument is
``data.path``; it is empty for a data set that reads no path. Raises :class:`StudyError` for a file
that it can't use."""

SOURCES: dict[str, Reader] = {}
"""The function of every data set, by name."""


def source(name: str) -> Callable[[Reader], Reader]:
    """Register a function as the reader of a data set."""

    def register(reader: Reader) -> Reader:
        SOURCES[name] = reader
        return reader

    return register


@source("pydoc")
def _pydoc(_: str) -> Iterable[Example]:
    return _documentation()


@cache
def _documentation() -> tuple[Example, ...]:
    """Cached in the process and in the user's cache folder: reading it takes half a second."""

    def read() -> dict[str, np.ndarray]:
        texts = [[example.context, example.target] for example in pydoc.documentation()]
        return {"json": np.frombuffer(json.dumps(texts).encode(), np.uint8)}

    kept = kept_arrays(f"pydoc-{pydoc.state()}", read)["json"]
    return tuple(Example(context, target) for context, target in json.loads(kept.tobytes()))


@source("xbrl_extract")
def _xbrl_extract(_: str) -> Iterable[Example]:
    return xbrl.questions()


@source("jsonl")
def _jsonl(path: str) -> Iterable[Example]:
    return jsonl.read(path)


def load_examples(config: DataConfig) -> list[Example]:
    """The examples of the data set that ``config`` names. Only its name and its path matter.

    Raises :class:`StudyError` for an unknown name, a path that is missing, unusable or not needed,
    and a data set without examples.
    """
    if config.name not in DATASETS:
        raise unknown("data", config.name, DATASETS)
    path = "" if config.path in (None, MISSING) else str(config.path)
    _check_path(config.name, path)
    examples = list(SOURCES[config.name](path))
    if not examples:  # pydoc: a Python installed without sources and docstrings
        place = f"data.path={path!r}" if path else f"data={config.name}"
        others = ", ".join(name for name in DATASETS if name != config.name)
        raise StudyError(
            f"{place} has no examples: name another file, or choose data from {others}"
        )
    return examples


def _check_path(name: str, path: str) -> None:
    """Raises :class:`StudyError` if ``data.path`` is missing, or is given and not read."""
    if DATASETS[name].reads_path and not path:
        raise StudyError(f"data={name} reads a file: add data.path=<file>")
    if path and not DATASETS[name].reads_path:
        readers = " or ".join(f"data={key}" for key, row in DATASETS.items() if row.reads_path)
        raise StudyError(
            f"data={name} reads no file, but data.path={path!r} is given: "
            f"use {readers}, or remove data.path"
        )
