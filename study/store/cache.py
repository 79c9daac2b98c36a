"""The user's cache folder: hashes of large files, and arrays that take long to compute."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from study.errors import StudyError
from study.store.files import replacing

_WORTH_A_LINE = 2 << 30
"""Bytes of a file that take long enough to hash for the user to wonder."""


def cache_folder() -> Path:
    """The user's cache folder, created if absent. The variable ``STUDY_CACHE`` moves it.

    Raises :class:`StudyError` if it can't be created.
    """
    folder = Path(
        os.environ.get("STUDY_CACHE") or platformdirs.user_cache_dir("study")
    ).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"can't create the cache folder {folder} ({error.strerror}): "
            "set STUDY_CACHE to a folder that you may write"
        ) from None
    return folder


def file_sha256(path: Path, again: bool = False) -> str:
    """The file's sha256 in hex. It is cached by path, size and modification time.

    A file that is changed in place gets a new hash unless its size and its modification time, to
    the nanosecond, stay the same. With ``again`` it gets one in any case.
    """
    stat = path.stat()
    whole_path = str(path.resolve())
    seen = {"path": whole_path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    name = hashlib.sha256(whole_path.encode()).hexdigest()[:24]
    note = cache_folder() / "sha256" / f"{name}.json"
    remembered = _noted(note)
    if not again and all(remembered.get(key) == value for key, value in seen.items()):
        return str(remembered["sha256"])
    if stat.st_size > _WORTH_A_LINE:
        print(f"hashing {path.name} ({stat.st_size / 1e9:.1f} GB)", file=sys.stderr)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    content = json.dumps(seen | {"sha256": sha256}).encode()
    _keep(note, lambda file: file.write(content))
    return sha256


def _noted(note: Path) -> dict[str, Any]:
    try:
        with _kept(note) as file:
            return dict(json.loads(file.read()))
    except (OSError, ValueError):  # not cached, or damaged
        return {}


def kept_arrays(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that ``make`` returns, cached as ``arrays/name.npz`` in the cache folder.

    ``name`` must identify everything that the arrays are computed from. A damaged file is made
    again.
    """
    place = cache_folder() / "arrays" / f"{name}.npz"
    try:
        with _kept(place) as file, np.load(file, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError):  # not cached, or damaged
        arrays = make()
    _keep(place, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return arrays


# A file of the cache is the sha256 of its content in hex, a newline, and the content.

_HEAD = 65


@contextlib.contextmanager
def _kept(place: Path) -> Iterator[BufferedReader]:
    """An open file of the cache, at the start of its content. ValueError if it is damaged."""
    with place.open("rb") as file:
        head = file.read(_HEAD)
        if head != _head(file):
            raise ValueError(f"{place} is damaged")
        yield file


def _keep(place: Path, save: Callable[[BufferedRandom], Any]) -> None:
    """Write a file of the cache, its content by ``save``."""
    with contextlib.suppress(OSError):  # a read-only or full cache costs time, not correctness
        place.parent.mkdir(exist_ok=True)
        with replacing(place) as draft, draft.open("wb+") as file:
            file.write(bytes(_HEAD))
            save(file)
            head = _head(file)
            file.seek(0)
            file.write(head)


def _head(file: BufferedReader | BufferedRandom) -> bytes:
    """The first line of an open file, from its content. Leaves the file at its content."""
    file.seek(_HEAD)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(_HEAD)
    return f"{digest}\n".encode()
