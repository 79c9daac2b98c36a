"""The state of a running cell, to go on from.

``checkpoints/step-00000040.safetensors`` in a cell's folder holds the state before step 40, and
``step-00000040.json`` beside it the hash of that file. It is written last, so a checkpoint is on
disk as a whole or not at all. The rows of earlier steps are on disk before it, and
the newest two are kept. Reading a file executes nothing in it.
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
from safetensors.numpy import save_file

from study.errors import no_panic, one_line, short
from study.store.files import described, make_folder, remove, replacing, verified, write_text
from study.store.records import CHECKPOINTS

FORMAT = 2
"""The version of a checkpoint's content. Another version can't be used."""
KEPT = 2
WEIGHTS = "weights/"
"""The beginning of the names of trained weights, which must be finite."""

_NAME = re.compile(r"step-(\d+)\.json", re.ASCII)
_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
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


class _Stored(Mapping[str, np.ndarray]):
    """The tensors of a file. Each access reads one of them into new memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with no_panic(), safe_open(path, framework="numpy") as file:
            self.names = dict.fromkeys(file.keys())
            self.metadata: dict[str, str] = file.metadata()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        with no_panic(), safe_open(self.path, framework="numpy") as file:
            return np.asarray(file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def save(
    folder: Path, checkpoint: Checkpoint, before_rename: Callable[[], None] = lambda: None
) -> Path:
    """Write a checkpoint of the cell in ``folder`` and delete older ones. Returns its file.

    ``before_rename`` is called when the tensors are on disk; it must put the rows of earlier steps
    on disk. Takes the memory of the tensors once more. Raises
    :class:`~study.store.files.StorageError` if the disk is full or can't be written; earlier
    checkpoints are then untouched.
    """
    place = folder / CHECKPOINTS
    if place.is_symlink():
        remove(place)
    make_folder(place)
    path = place / f"step-{checkpoint.step:08d}.safetensors"
    note = path.with_suffix(".json")
    remove(note)
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.tensors.items()}
    with replacing(path) as draft:
        save_file(arrays, draft, {"state": json.dumps(checkpoint.state)})
    before_rename()
    about = {
        "format": FORMAT,
        "cell_id": checkpoint.cell_id,
        "step": checkpoint.step,
        "file": described(path),
    }
    write_text(note, json.dumps(about))
    newest = sorted(_notes(place).items())[-KEPT:]
    kept = {file for _, note in newest for file in (note, note.with_suffix(".safetensors"))}
    for other in set(place.iterdir()) - kept:  # older ones, and what a killed process left
        remove(other)
    return path


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint of the cell in ``folder``, by its name; 0 without one."""
    return max(_notes(folder / CHECKPOINTS), default=0)


def load_newest(
    folder: Path, cell_id: str, say: Callable[[str], None] | None = None
) -> Checkpoint | None:
    """The newest usable checkpoint of the cell in ``folder``; None if there is none.

    Usable is one of this format and cell, with the hash of its content and finite weights. ``say``
    gets one line about each that is not usable; by default it is logged as a warning. Costs reading
    the file twice.
    """
    found = _notes(folder / CHECKPOINTS)
    for step in sorted(found, reverse=True):
        try:
            return _read(found[step], cell_id, step)
        except _DAMAGE as reason:
            (say or _log.warning)(
                f"cell {cell_id}: its checkpoint of step {step} can't be used ({_words(reason)}): "
                f"trying {'the one before' if step != min(found) else 'the start of training'}"
            )
    return None


def unusable(folder: Path, cell_id: str) -> Iterator[tuple[Path, str]]:
    """The files that :func:`load_newest` can't use, with the reason. Reads every file twice."""
    for step, note in sorted(_notes(folder / CHECKPOINTS).items()):
        try:
            _read(note, cell_id, step)
        except _DAMAGE as reason:
            yield note, _words(reason)


def _notes(place: Path) -> dict[int, Path]:
    """The JSON files of checkpoints by step."""
    named = ((_NAME.fullmatch(path.name), path) for path in place.glob("step-*.json"))
    return {int(match[1]): path for match, path in named if match}


def _read(note: Path, cell_id: str, step: int) -> Checkpoint:
    about = json.loads(note.read_bytes())
    if about["format"] != FORMAT:
        raise ValueError(f"it has format {short(about['format'])}, not {FORMAT}")
    if (about["cell_id"], about["step"]) != (cell_id, step):
        raise ValueError(f"it is of cell {short(about['cell_id'])}, step {short(about['step'])}")
    path = note.with_suffix(".safetensors")
    verified(path, about["file"])
    tensors = _Stored(path)
    for name in tensors:
        if name.startswith(WEIGHTS) and not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} is not finite")
    return Checkpoint(cell_id, step, tensors, json.loads(tensors.metadata["state"]))


def _words(reason: Exception) -> str:
    return str(reason) if type(reason) is ValueError else one_line(reason)
