"""Files that a command writes for its user: whole, or not at all."""

from pathlib import Path

from study.errors import StudyError
from study.store.files import make_folder, write_bytes


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file atomically, and its folder if that is missing.

    A symbolic link is replaced, not followed. Raises :class:`StudyError` if ``path`` is a folder or
    a device, which an atomic write would replace, and
    :class:`~study.store.files.StorageError` if it can't be written.
    """
    if path.is_dir() or (path.exists() and not path.is_file()):
        kind = "a folder" if path.is_dir() else "a device"
        raise StudyError(f"can't write {path}: it is {kind}; give the path of a file")
    make_folder(path.parent)
    write_bytes(path, content.encode() if isinstance(content, str) else content)
