"""What a model's folder must be before transformers reads it: a stranger may have written it.

transformers builds whatever config.json describes, and follows keys there that load other files,
other models or code. So the files are first read here.
"""

import math
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from study.errors import StudyError, short
from study.models import hub
from study.models.quiet import quoted
from study.reading import check_tensors, read_object

CONFIG = "config.json"
LARGEST_CONFIG = 4 << 20
LARGEST_INDEX = 16 << 20
"""Bytes of the index of shards."""

_READ_BY_TRANSFORMERS = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_LARGEST_SMALL_FILE = 100 << 20
"""Bytes. The largest tokenizers have about 40 MiB."""
_AGAIN = "fetch or save the model again"

_MOST = (
    (re.compile(r"(layers?|blocks?|depth)$"), 1000, "layers"),
    (re.compile(r"(heads|experts|groups|codebooks|labels)$"), 100_000, "parts of a layer"),
)
"""Counts of what transformers makes one by one: a pattern of the key, the most, and in words."""

_OTHER_FILES = ("transformers_weights", "fusion_config")
"""Keys with which transformers loads other weights or computes other layers."""


class Tensor(NamedTuple):
    """A tensor in a file: its shape, and its type as safetensors names it, such as ``BF16``."""

    shape: tuple[int, ...]
    dtype: str


def check_folder(folder: Path, named: str) -> None:
    """Raises :class:`StudyError` unless transformers can read the small files of a model's folder.

    It takes about 1 ms. Refused are pipes, devices and files of over 100 MiB; an adapter beside the
    model, which transformers would load, with the base that it names; and a config.json that asks
    for more layers than a computer can make, for other weight files, or for code from the hub.
    """
    try:
        files = {file.name: file.stat() for file in folder.iterdir()}
    except OSError as error:
        raise StudyError(
            f"{named} can't be read ({error.strerror}): check its permissions and its links"
        ) from None
    if CONFIG not in files:
        raise StudyError(f"{named} has no {CONFIG}: give the folder that save_pretrained wrote")
    if "adapter_config.json" in files:
        raise StudyError(
            f"{named} has an adapter_config.json: for an adapter, use adapter.path and name its "
            "base as model.path; otherwise delete that file"
        )
    for name, file in files.items():
        if name.endswith(_READ_BY_TRANSFORMERS) and not stat.S_ISDIR(file.st_mode):
            if not stat.S_ISREG(file.st_mode):
                raise StudyError(f"{named}: {short(name)} is not a regular file: {_AGAIN}")
            if file.st_size > _LARGEST_SMALL_FILE:
                raise StudyError(
                    f"{named}: {short(name)} has {file.st_size >> 20} MiB, more than "
                    f"{_LARGEST_SMALL_FILE >> 20}: {_AGAIN}"
                )
    _check_config(read_object(folder / CONFIG, f"{named}: {CONFIG}", _AGAIN, LARGEST_CONFIG), named)


def _check_config(config: dict[str, Any], named: str) -> None:
    for key, value in _values(config):
        if key in _OTHER_FILES and value:
            raise StudyError(
                f"{named}: {CONFIG} has {key}={short(value)}, which changes the model as it is "
                "loaded: remove the key"
            )
        if key.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise StudyError(
                f"{named}: {CONFIG} has {key}={short(value)}, which is code on the hub and is "
                "never run: remove the key"
            )
        if type(value) is int:
            for pattern, most, words in _MOST:
                if pattern.search(key) and value > most:
                    raise StudyError(
                        f"{named}: {CONFIG} has {key}={short(value)}: at most {most} {words} can "
                        f"be made; {_AGAIN}"
                    )


def _values(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key at any depth, with its value."""
    waiting: list[Any] = [config]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield from here.items()
            waiting += here.values()
        elif isinstance(here, list):
            waiting += here


def shards(folder: Path, named: str) -> list[Path]:
    """The weight files that the index in ``folder`` names.

    Raises :class:`StudyError` for an index that is damaged or names files elsewhere.
    """
    path, where = folder / hub.INDEX, f"{named}: {hub.INDEX}"
    files = read_object(path, where, _AGAIN, LARGEST_INDEX).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise StudyError(f"{where} is damaged (it has no weight_map): {_AGAIN}")
    for tensor, file in files.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise StudyError(
                f"{where} has {short(file)} for {short(tensor)}: it must name a .safetensors file "
                "in the same folder"
            )
    return [folder / file for file in sorted(set(files.values()))]


def check_weights(file: Path, named: str) -> None:
    """Raises :class:`StudyError` for a safetensors file that is damaged or missing, judging by
    header and length.
    """
    check_tensors(file, named, _AGAIN)
    try:
        with safe_open(file, framework="pt") as opened:
            empty = not opened.keys()
    except (SafetensorError, OSError, MemoryError) as error:
        raise StudyError(f"{named} is damaged ({quoted(error)}): {_AGAIN}") from None
    if empty:
        raise StudyError(f"{named} holds no tensor: {_AGAIN}")


def tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that :func:`check_weights` accepts, by name."""
    with safe_open(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: Tensor(tuple(found.get_shape()), found.get_dtype())
            for name, found in slices.items()
        }


def check_shapes(
    found: Mapping[str, Tensor], needed: Mapping[str, Sequence[int]], prefix: str, named: str
) -> None:
    """Raises :class:`StudyError` for a tensor in ``found`` that is not what the model needs.

    ``needed``: the shape of every parameter of the model; a file may leave out ``prefix``. Compared
    are sizes, because transformers may transpose a tensor, and tensors of these names, because it
    renames and joins others. Loading compares the rest.
    """
    for name, tensor in found.items():
        shape = needed.get(name, needed.get(f"{prefix}.{name}"))
        if shape is None:
            continue
        if math.prod(tensor.shape) != math.prod(shape):
            raise wrong_shape(named, name, tensor.shape, shape)
        if not tensor.dtype.startswith(("F", "BF")):
            raise StudyError(
                f"{named}: {short(name)} has type {tensor.dtype}, not a float: give the "
                "unquantised checkpoint"
            )


def wrong_shape(named: str, tensor: str, found: Sequence[int], needed: Sequence[int]) -> StudyError:
    """The error for a tensor whose shape is not the model's."""
    return StudyError(
        f"{named}: {short(tensor)} has shape {list(found)}, but its config.json needs "
        f"{list(needed)}: {_AGAIN}"
    )
