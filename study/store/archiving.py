"""Write a study's ended cells as an archive (:mod:`study.store.archive`)."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import StudyError
from study.store.archive import ARCHIVE, FILES
from study.store.cell_tables import load_cell_table
from study.store.files import make_folder, replacing, write_bytes
from study.store.records import cell_folders, no_study, read_cell
from study.store.schemas import DISTANCES, SCHEMAS
from study.vocabulary.statuses import ENDED

LEVEL = 19
"""Of the compression. It takes a second for 5 MB; reading takes the same time at every level."""

Thin = Callable[[str, pa.Table], pa.Table]
"""``thin(name, rows)`` is the part of a table that the archive keeps."""


@dataclass(frozen=True)
class Archived:
    """What was written: the file, its number of cells, and the ids of those left out."""

    path: Path
    cells: int
    left_out: tuple[str, ...]

    @property
    def megabytes(self) -> float:
        return self.path.stat().st_size / 1e6


def write_archive(
    study_dir: Path,
    to: Path,
    plots_dir: str = "plots",
    thin: Thin = lambda name, rows: rows,
) -> Archived:
    """Write the cells of ``study_dir`` that have ended to ``to/cells.tar.zst``.

    Values are those of the study, bit for bit. Each record gets the hashes of the new files, and
    names ``to`` and ``plots_dir`` as the study's folders. Adapters are left out. The table of
    ``study distances`` is copied. Raises :class:`StudyError` if no cell has ended,
    :class:`~study.store.streams.Damaged` if a table is damaged, and
    :class:`~study.store.files.StorageError` if ``to`` can't be written.
    """
    files: dict[str, bytes] = {}
    kept, left_out = 0, []
    for folder in cell_folders(study_dir):
        record = read_cell(folder)
        if record is None or record["status"] not in ENDED:
            left_out.append(folder.name)
            continue
        places = {"name": to.name, "results_dir": to.parent.as_posix(), "plots_dir": plots_dir}
        files |= _files_of(folder, record, places, thin)
        kept += 1
    if not kept:
        raise (
            no_study(study_dir)
            if not left_out
            else StudyError(f"no cell of {study_dir} has ended: archive it when its sweep is done")
        )
    make_folder(to)
    write_bytes(to / ARCHIVE, _tar(files))
    distances = study_dir / f"{DISTANCES}.parquet"
    if distances.exists() and study_dir.resolve() != to.resolve():
        with replacing(to / distances.name) as draft:
            shutil.copyfile(distances, draft)
    return Archived(to / ARCHIVE, kept, tuple(left_out))


def _files_of(
    folder: Path, record: Mapping[str, Any], places: Mapping[str, str], thin: Thin
) -> dict[str, bytes]:
    """The files of a cell by their path in the archive."""
    tables = {name: thin(name, load_cell_table(folder, name, None, record)) for name in SCHEMAS}
    encoded = {name: _encoded(rows) for name, rows in tables.items() if len(rows)}
    about = {
        "study": places["name"],
        "config": {**record["config"], **places},
        "tables": {name: _described(content) for name, content in encoded.items()},
        "adapter": {},
    }
    text = json.dumps({**record, **about}, indent=2, sort_keys=True, allow_nan=True)
    config = (folder / "config.yaml").read_text()
    config = "".join(_placed(line, places) for line in config.splitlines(keepends=True))
    contents = {f"{name}.parquet": content for name, content in encoded.items()}
    contents |= {"config.yaml": config.encode(), "record.json": f"{text}\n".encode()}
    return {f"{folder.name}/{name}": content for name, content in contents.items()}


def _placed(line: str, places: Mapping[str, str]) -> str:
    """A line of ``config.yaml``, with the value of ``places`` if it is one of these keys."""
    key = line.partition(":")[0]
    return f"{key}: {places[key]}\n" if key in places else line


def _encoded(rows: pa.Table) -> bytes:
    """A Parquet file that compresses well together with others of its kind: it is not compressed,
    and the bytes of its numbers are sorted by significance.
    """
    numbers = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        compression="none",
        use_dictionary=[name for name in rows.schema.names if name not in numbers],
        use_byte_stream_split=numbers,
        write_statistics=False,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def _described(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _tar(files: Mapping[str, bytes]) -> bytes:
    """The same files give the same bytes. Files of one kind are neighbours, for the compression."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in FILES:
            for path in sorted(path for path in files if path.endswith(f"/{name}")):
                entry = tarfile.TarInfo(path)
                entry.size = len(files[path])
                tar.addfile(entry, io.BytesIO(files[path]))
    compressed = pa.Codec("zstd", compression_level=LEVEL).compress(whole.getvalue())
    return bytes(compressed)
