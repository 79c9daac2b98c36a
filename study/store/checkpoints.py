"""The state of a running cell, to go on from: one safetensors file per checkpoint.

``checkpoints/step-00000040.safetensors`` in a cell's folder holds the state before step 40. Its
metadata is one JSON text. A checkpoint is on disk as a whole or not at all, the rows of earlier
steps are on disk before it, and the newest two are kept. Reading a file executes nothing in it.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from study.errors import no_panic, one_line, printable
from study.store.files import DRAFT, create, make_folder, remove, replacing, write
from study.store.records import CHECKPOINTS

FORMAT = 1
"""The version of a checkpoint's content. Another version can't be used."""
KEPT = 2
WEIGHTS = "weights/"
"""The beginning of the names of trained weights, which must be finite."""

_NAME = re.compile(r"step-(\d+)\.safetensors", re.ASCII)
_ABSENT = "0" * 64
"""In place of the file's hash while the hash is computed."""
_CHUNK = 1 << 24
_RESERVE = 1 << 26
"""Bytes of the disk that a checkpoint leaves free, for rows and records."""
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "|u1",
    "BOOL": "|b1",
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}

_DAMAGE = (
    *(OSError, SafetensorError, ValueError, KeyError),
    *(TypeError, AttributeError, RuntimeError),
)
"""What reading a file raises if its content is not what :func:`save` wrote."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A cell's state before ``step``, the first step still to run.

    - ``tensors``: by name. From disk, each is read when it is asked for;
    - ``state``: what JSON can hold.
    """

    cell_id: str
    step: int
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)


class _Unusable(Exception):
    """The reason why a file can't be used."""


class _Stored(Mapping[str, np.ndarray]):
    """The tensors of a file. Each access reads one of them into new memory."""

    def __init__(self, path: Path, entries: Mapping[str, Any], start: int) -> None:
        self.path, self.entries, self.start = path, entries, start

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"]
        offset, count = self.start + entry["data_offsets"][0], int(np.prod(shape, dtype=np.int64))
        return np.fromfile(self.path, dtype, count, offset=offset).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def save(
    folder: Path, checkpoint: Checkpoint, before_rename: Callable[[], None] = lambda: None
) -> Path:
    """Write a checkpoint of the cell in ``folder`` and delete older ones. Returns its file.

    ``before_rename`` is called when the content is written; it must put the rows of earlier steps
    on disk. Arrays are written from where they are, without a copy. Raises
    :class:`~study.store.files.StorageError` if the disk is full or can't be written; earlier
    checkpoints are then untouched.
    """
    place = folder / CHECKPOINTS
    make_folder(place)
    for draft in place.glob(f"*{DRAFT}"):  # of a killed process: the cell has one writer
        remove(draft)
    path = place / f"step-{checkpoint.step:08d}.safetensors"
    with replacing(path) as draft:
        _check_space(place, sum(array.nbytes for array in checkpoint.tensors.values()))
        _write(draft, checkpoint)
        before_rename()
    found = _steps(place)
    kept = [step for step in found if step <= checkpoint.step][-KEPT:]
    for step in found.keys() - kept:  # a later one was not usable: this step would not run again
        remove(found[step])
    return path


def _check_space(place: Path, size: int) -> None:
    if shutil.disk_usage(place).free < size + _RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint of the cell in ``folder``, by its name; 0 without one."""
    return max(_steps(folder / CHECKPOINTS), default=0)


def load_newest(
    folder: Path, cell_id: str, say: Callable[[str], None] | None = None
) -> Checkpoint | None:
    """The newest usable checkpoint of the cell in ``folder``; None if there is none.

    Usable is a file of this format and cell, with the hash of its content and finite weights.
    ``say`` gets one line about each file that is not usable; by default it is logged as a warning.
    Costs reading the file twice.
    """
    found = _steps(folder / CHECKPOINTS)
    for step in reversed(found):
        try:
            return _read(found[step], cell_id, step)
        except _Unusable as reason:
            (say or _log.warning)(
                f"cell {cell_id}: its checkpoint of step {step} can't be used ({reason}): "
                f"trying {'the one before' if step != min(found) else 'the start of training'}"
            )
    return None


def unusable(folder: Path, cell_id: str) -> Iterator[tuple[Path, str]]:
    """The files that :func:`load_newest` can't use, with the reason. Reads every file twice."""
    for step, path in _steps(folder / CHECKPOINTS).items():
        try:
            _read(path, cell_id, step)
        except _Unusable as reason:
            yield path, str(reason)


def _steps(place: Path) -> dict[int, Path]:
    """The files of checkpoints by step, in order."""
    named = ((_NAME.fullmatch(path.name), path) for path in place.glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def _write(path: Path, checkpoint: Checkpoint) -> None:
    """The hash in the header is of the whole file, with :data:`_ABSENT` in place of the hash."""
    arrays = {
        name: np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        for name, array in checkpoint.tensors.items()
    }
    header = _header(checkpoint, arrays)
    digest = hashlib.sha256(header)
    for content in _contents(arrays):
        digest.update(content)
    header = header.replace(_ABSENT.encode(), digest.hexdigest().encode(), 1)
    file = create(path)
    try:
        for content in (memoryview(header), *_contents(arrays)):
            write(file, content, path)
    finally:
        os.close(file)


def _contents(arrays: Mapping[str, np.ndarray]) -> Iterator[memoryview]:
    """The bytes of every array, where they are."""
    return (array.reshape(-1).view(np.uint8).data for array in arrays.values())


def _header(checkpoint: Checkpoint, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The header of a safetensors file, its length first."""
    described = {
        "sha256": _ABSENT,
        "format": FORMAT,
        "cell_id": checkpoint.cell_id,
        "step": checkpoint.step,
        "state": checkpoint.state,
    }
    header: dict[str, Any] = {"__metadata__": {"checkpoint": json.dumps(described)}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        code = _CODES[array.dtype]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text


def _read(path: Path, cell_id: str, step: int) -> Checkpoint:
    """Raises :class:`_Unusable`, with the reason."""
    try:
        with no_panic(), safe_open(path, framework="numpy") as file:  # checks every offset
            described = json.loads((file.metadata() or {})["checkpoint"])
        if described["format"] != FORMAT:
            raise _Unusable(f"format {printable(described['format'])}, not {FORMAT}")
        if (described["cell_id"], described["step"]) != (cell_id, step):
            of = f"{printable(described['cell_id'])}, step {printable(described['step'])}"
            raise _Unusable(f"it is of cell {of}")
        header = _checked_header(path, described["sha256"])
        entries = json.loads(header[8:])
        del entries["__metadata__"]
        tensors = _Stored(path, entries, len(header))
        _check_finite(tensors)
        return Checkpoint(cell_id, step, tensors, described["state"])
    except _DAMAGE as error:
        raise _Unusable(f"damaged: {one_line(error)}") from None


def _checked_header(path: Path, expected: str) -> bytes:
    """The header with its length, after the file's hash is compared with ``expected``."""
    with path.open("rb") as file:
        length = file.read(8)
        header = length + file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(header.replace(expected.encode(), _ABSENT.encode(), 1))
        while content := file.read(_CHUNK):
            digest.update(content)
    if digest.hexdigest() != expected:
        raise _Unusable("its content does not have its hash")
    return header


def _check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    for name in tensors:
        if name.startswith(WEIGHTS) and not np.isfinite(tensors[name]).all():
            raise _Unusable(f"{name} is not finite")
