"""What is kept between runs: the user cache folder, hashes of large files, and arrays that take long to make."""

import contextlib
import hashlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs

from study.errors import StudyError

_WORTH_A_LINE = 2 << 30  # bytes; hashing them takes long enough for a user to wonder


def cache_folder() -> Path:
    """The user's cache folder, made if absent; the environment variable ``STUDY_CACHE`` puts it elsewhere.

    Raises :class:`StudyError` where it can't be made.
    """
    folder = Path(
        os.environ.get("STUDY_CACHE") or platformdirs.user_cache_dir("study")
    ).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"cannot make the cache folder {folder} ({error.strerror}): set STUDY_CACHE to a folder that you may write"
        ) from None
    return folder


def file_sha256(path: Path) -> str:
    """The file's sha256 in hex, remembered in the cache folder by path, size and modification time.

    A file changed in place keeps its hash only if both its size and its time (to the nanosecond) stay the same.
    """
    stat = path.stat()
    whole_path = str(path.resolve())
    seen = {"path": whole_path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = (
        cache_folder() / "sha256" / f"{hashlib.sha256(whole_path.encode()).hexdigest()[:24]}.json"
    )
    try:
        remembered = json.loads(note.read_text())
        if {key: remembered[key] for key in seen} == seen:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never hashed, or the note is damaged: the file itself is what counts
    if stat.st_size > _WORTH_A_LINE:
        print(f"hashing {path.name} ({stat.st_size / 1e9:.1f} GB, once)", file=sys.stderr)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _remember(note, {**seen, "sha256": sha256})
    return sha256


def kept_arrays(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What ``make`` returns, from the cache folder's ``arrays/name.npz`` where an earlier call has left it.

    ``name`` must say all that the arrays are made from. A damaged file is made again; it is written at once or not.
    """
    place = cache_folder() / "arrays" / f"{name}.npz"
    try:
        with np.load(place, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    arrays = make()
    draft = place.with_suffix(f".{os.getpid()}")
    try:
        place.parent.mkdir(exist_ok=True)
        with draft.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        draft.replace(place)
    except OSError:  # a read-only or full cache costs time, not correctness
        with contextlib.suppress(OSError):
            draft.unlink()
    return arrays


def _remember(note: Path, content: dict[str, object]) -> None:
    try:
        note.parent.mkdir(exist_ok=True)
        draft = note.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(content))
        draft.replace(note)
    except OSError:
        pass  # a read-only cache costs time, not correctness
