"""The state of a running cell, for resuming.

``checkpoints/step-00000040.safetensors`` in a cell's folder holds the state before step 40.
``step-00000040.json`` next to it holds the hash of that file. It is written last, so a checkpoint
is on disk whole or not at all. The rows of earlier steps are on disk before it. The newest two are
kept. Reading a file executes nothing in it.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from study.errors import one_line, short
from study.store import files
from study.store.records import CHECKPOINTS

FORMAT = 2
"""The version of a checkpoint's content. Another version can't be used."""
KEPT = 2
WEIGHTS = "weights/"
"""The beginning of the names of trained weights, which must be finite."""

_NAME = re.compile(r"step-(\d+)\.json", re.ASCII)
_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a file raises if its content is not what :func:`save` wrote."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A cell's state before ``step``, the first step still to run. ``state`` is for JSON."""

    step: int
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)


def save(
    folder: Path, checkpoint: Checkpoint, before_rename: Callable[[], None] = lambda: None
) -> Path:
    """Write a checkpoint and delete older ones. Returns its file. ``before_rename`` must put the
    rows of earlier steps on disk."""
    place = folder / CHECKPOINTS
    if place.is_symlink():
        files.remove(place)
    files.make_folder(place)
    path = place / f"step-{checkpoint.step:08d}.safetensors"
    note = path.with_suffix(".json")
    files.remove(note)
    file = files.write_bytes(path, *_parts(checkpoint))
    before_rename()
    about = {"format": FORMAT, "cell_id": folder.name, "step": checkpoint.step, "file": file}
    files.write_text(note, json.dumps(about))
    newest = sorted(_notes(place).items())[-KEPT:]
    kept = {file for _, note in newest for file in (note, note.with_suffix(".safetensors"))}
    files.remove(*set(place.iterdir()) - kept)  # older ones, and what a killed process left
    return path


def _parts(checkpoint: Checkpoint) -> list[bytes | memoryview]:
    """A checkpoint in the format of safetensors. Its parts share the memory of contiguous arrays.
    ``safetensors.numpy.save`` copies the state twice: at rank 2048 that doubles a run's memory."""
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.tensors.items()}
    header: dict[str, Any] = {"__metadata__": {"state": json.dumps(checkpoint.state)}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        dtype = f"{array.dtype.kind.upper()}{8 * array.itemsize}"  # F32, I64, U8
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    bytes_of = (array.reshape(-1).view(np.uint8).data for array in arrays.values())
    return [len(text).to_bytes(8, "little"), text, *bytes_of]


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint of the cell in ``folder``, by its name; 0 without one."""
    return max(_notes(folder / CHECKPOINTS), default=0)


def load_newest(folder: Path, say: Callable[[str], None] = _log.warning) -> Checkpoint | None:
    """The newest usable checkpoint of the cell in ``folder``, or None. ``say`` gets a line about
    each other one."""
    for note, read in tried(folder):
        if isinstance(read, Checkpoint):
            return read
        say(f"cell {folder.name}: its checkpoint {note.name} can't be used ({read})")
    return None


def tried(folder: Path) -> Iterator[tuple[Path, Checkpoint | str]]:
    """Each checkpoint, the newest first, or why it can't be used."""
    for step, note in sorted(_notes(folder / CHECKPOINTS).items(), reverse=True):
        try:
            yield note, _read(note, folder.name, step)
        except _DAMAGE as error:
            yield note, one_line(error)


def _notes(place: Path) -> dict[int, Path]:
    named = ((_NAME.fullmatch(path.name), path) for path in place.glob("step-*.json"))
    return {int(match[1]): path for match, path in named if match}


def _read(note: Path, cell_id: str, step: int) -> Checkpoint:
    about = json.loads(note.read_bytes())
    wanted = {"format": FORMAT, "cell_id": cell_id, "step": step}
    if found := {key: about[key] for key, value in wanted.items() if about[key] != value}:
        raise ValueError(f"it has {short(found)}")
    path = note.with_suffix(".safetensors")
    files.read(path, about["file"])
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = json.loads(file.metadata()["state"])
    for name, tensor in tensors.items():
        if name.startswith(WEIGHTS) and not np.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    return Checkpoint(step, tensors, state)
