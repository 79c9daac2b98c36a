"""A data set of the Hugging Face hub as rows, through ``datasets``."""

import re
from collections.abc import Iterator
from importlib import import_module

from study.config import DataConfig
from study.data.jsonl import Found
from study.errors import StudyError, one_line, short
from study.vocabulary.extras import install


def is_hub_name(path: str) -> bool:
    """Whether ``path`` has the form ``org/name``."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) is not None


def read(config: DataConfig) -> Iterator[Found]:
    """Yield the rows of the data set ``data.path``, of its ``data.split`` and ``data.subset``.

    It is downloaded once. Raises :class:`StudyError` without ``datasets``, and for what it can't
    load.
    """
    named = f"data.path={short(config.path, 200)}"
    try:
        datasets = import_module("datasets")
    except ModuleNotFoundError:
        raise StudyError(
            f"{named} is no file here; a data set of the hub needs datasets: {install('data')}"
        ) from None
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(config.path, config.subset, split=config.split)
        for number, row in enumerate(found, start=1):
            yield f"{named}, row {number}", row
    except Exception as error:  # of many kinds: the network, the name, the split, the files
        raise StudyError(
            f"{named}, split {config.split}, subset {config.subset or 'null'}: it is no file here, "
            f"and datasets can't load it ({one_line(error)}): check the network, the name, "
            "data.split and data.subset"
        ) from None
