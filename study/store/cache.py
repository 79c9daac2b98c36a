"""The user's cache folder, and the hashes of large files in it."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import platformdirs

from study.errors import StudyError
from study.store.files import make_folder, write_bytes


def cache_folder() -> Path:
    """The user's cache folder, created if absent. The variable ``STUDY_CACHE`` moves it."""
    place = os.environ.get("STUDY_CACHE") or platformdirs.user_cache_dir("study")
    folder = Path(place).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"can't create the cache folder {folder} ({error.strerror})"
        raise StudyError(f"{why}: set STUDY_CACHE to a folder that you may write") from None
    return folder


def file_sha256(path: Path, again: bool = False) -> str:
    """The file's sha256 in hex, cached by path, size and time unless ``again``."""
    stat, whole_path = path.stat(), str(path.resolve())
    name = hashlib.sha256(whole_path.encode()).hexdigest()[:24]
    note = cache_folder() / "sha256" / f"{name}.json"
    seen = {"path": whole_path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    with contextlib.suppress(OSError, ValueError, TypeError):  # not cached, or damaged
        noted = dict(json.loads(note.read_bytes()))
        sha256 = str(noted.pop("sha256", ""))
        if noted == seen and not again:
            return sha256
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a read-only or full cache costs time, not correctness
        make_folder(note.parent)
        write_bytes(note, json.dumps(seen | {"sha256": sha256}).encode())
    return sha256
