"""An archived study: one file, ``cells.tar.zst``, that holds the folders of its ended cells.

A few thousand small files are slow in git, and a third of them is Parquet's description of their
columns. In an archive they take a fifth of the space. It is extracted into ``cells`` when the study
is read for the first time, and again when the archive has changed, so that every reader finds the
files of :mod:`study.store`. :mod:`study.store.archiving` writes it.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from study.errors import StudyError, one_line
from study.store.files import DRAFT, lock, make_folder, remove_folder, storing, write_text
from study.store.schemas import SCHEMAS

ARCHIVE = "cells.tar.zst"
NOTE = ".archive.json"
"""In ``cells``: the sha256 of the archive that was extracted, and the ids of its cells."""
LOCK = ".archive.lock"

FILES = ("config.yaml", "record.json", *(f"{name}.parquet" for name in SCHEMAS))
"""The files of a cell in an archive."""

MOST_BYTES = 4 << 30
"""Bytes of all files in an archive. Those of this project's largest study have 0.1 GB."""

_CELL = re.compile(r"[\w-]+")


def unpack(study_dir: Path) -> None:
    """Extract the study's archive into ``cells``, if there is one that was not extracted.

    A cell that is in ``cells`` already stays, unless an earlier archive put it there. Several
    processes may call it at once. Raises :class:`StudyError` if the archive is damaged or holds
    anything but cells, and :class:`~study.store.files.StorageError` if the study's folder can't be
    written.
    """
    archive = study_dir / ARCHIVE
    try:
        about = archive.stat()
    except OSError:
        return
    sha256 = _sha256(archive, about.st_mtime_ns, about.st_size)
    if _note(study_dir).get("sha256") == sha256:
        return
    with storing(study_dir), lock(study_dir / LOCK):
        note = _note(study_dir)
        if note.get("sha256") == sha256:  # another process has extracted it
            return
        for cell in note.get("cells", []):
            remove_folder(study_dir / "cells" / cell)
        cells = _extract(archive, study_dir)
        text = json.dumps({"sha256": sha256, "cells": cells})
        write_text(study_dir / "cells" / NOTE, text + "\n")


def _extract(archive: Path, study_dir: Path) -> list[str]:
    """Extract every cell that is not there. Returns the ids of those that were extracted."""
    draft = study_dir / f"cells{DRAFT}"
    remove_folder(draft)  # of a process that was killed
    make_folder(draft)
    try:
        with (
            pa.input_stream(archive, compression="zstd") as file,
            tarfile.open(fileobj=file, mode="r|") as tar,
        ):
            tar.extractall(draft, _checked(archive, tar), filter="data")
        make_folder(study_dir / "cells")
        extracted = []
        for folder in sorted(draft.iterdir()):
            place = study_dir / "cells" / folder.name
            if not place.exists():
                folder.rename(place)
                extracted.append(folder.name)
        return extracted
    except (tarfile.TarError, pa.ArrowException, EOFError, OSError) as error:
        if getattr(error, "errno", None):
            raise  # of the system; those of the decompression have no number
        raise _damaged(archive, one_line(error)) from None
    finally:
        remove_folder(draft)


def _checked(archive: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in an archive, which may come from a stranger."""
    size = 0
    for member in tar:
        cell, _, name = member.name.partition("/")
        if not (member.isfile() and _CELL.fullmatch(cell) and name in FILES):
            raise _damaged(archive, f"it holds {member.name!r}")
        size += member.size
        if size > MOST_BYTES:
            raise _damaged(archive, f"it holds more than {MOST_BYTES} bytes")
        yield member


def _damaged(archive: Path, why: str) -> StudyError:
    return StudyError(
        f"{archive} is no archive of a study or is damaged ({why}): get it again, for example with "
        f"`git checkout -- {archive}`"
    )


@cache
def _sha256(archive: Path, _modified: int, _size: int) -> str:
    """The hash of a file. Asked again when its time or size has changed."""
    with storing(archive), archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(study_dir: Path) -> dict[str, Any]:
    try:
        found = json.loads((study_dir / "cells" / NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
