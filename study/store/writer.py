"""The one writer of a cell."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from study.errors import StudyError
from study.store import files
from study.store.files import LOCK, Damaged, Lock, StorageError
from study.store.records import (
    ADAPTER,
    CHECKPOINTS,
    CONFIG,
    FORMAT,
    RECORD,
    SHA256,
    read_record,
    record_hash,
    without_folders,
)
from study.store.rows import SCHEMAS, Stream, read_stream, write_parquet
from study.store.tables import load_cell_table
from study.vocabulary.statuses import ENDED, RESUMABLE

ERROR_LOG = "error.log"
"""The file in a cell's folder with the traceback of an unexpected error."""
ASIDE = "aside"
"""The folder of a study with the results that were trained again, or could not be read."""


class CellWriter:
    """Appends rows to a claimed cell, and ends it with its status. After a crash at any system
    call, the tables become those of an undisturbed run."""

    def __init__(
        self,
        claimed: Lock,
        config_yaml: str,
        record: dict[str, Any],
        first_step: int = 0,
        gaps: bool = False,
    ) -> None:
        """Begin at ``first_step`` and keep the rows before it; with ``gaps`` some may be missing.
        Results of an ended or unreadable cell are moved to ``aside/ID.TIME``."""
        self.claim, self.folder = claimed, claimed.path.parent
        self.record = without_folders(record) | {"format": FORMAT}
        self._streams: dict[str, Stream] = {}
        self._error: StudyError | None = None
        try:
            kept = self._kept(first_step, gaps) if first_step else {}
            self._make_room(first_step)
            config = files.write_bytes(self.folder / CONFIG, config_yaml.encode())
            self.record["files"] = {CONFIG: config}
            # Until the streams are replaced, without their sizes: both the old and the new count.
            self._save_record(status="running")
            for name in SCHEMAS:
                if len(rows := kept.get(name, ())):
                    self._streams[name] = Stream(self._path(name), rows)
                else:
                    files.remove(self._path(name))
            if self._streams:
                self.sync()
        except BaseException:
            self._release()
            raise

    def append(self, table: str, rows: pd.DataFrame) -> None:
        """Append to one of :data:`~study.store.rows.SCHEMAS`. Columns absent from ``rows`` are NaN;
        :meth:`sync` puts them on disk."""
        schema = SCHEMAS[table]
        arrow = pa.Table.from_pandas(
            rows.reindex(columns=schema.names), schema=schema, preserve_index=False
        )
        with self._writing():
            if table in self._streams:
                self._streams[table].append(arrow)
            elif len(arrow):
                self._streams[table] = Stream(self._path(table), arrow)

    def sync(self) -> None:
        """Wait until all appended rows are on disk, and record how many bytes these are."""
        with self._writing():  # the system reports lost rows to the first caller only
            for stream in self._streams.values():
                stream.sync()
        self._save_record(streams={name: each.written for name, each in self._streams.items()})

    def write_error_log(self, error: BaseException) -> Path:
        path = self.folder / ERROR_LOG
        files.write_text(path, "".join(traceback.format_exception(error)))
        return path

    def close(self, status: str, **fields: Any) -> None:
        """Turn the streams into Parquet files, record ``status`` and ``fields``, release the claim.
        If it raises, call :meth:`interrupt`."""
        with self._writing():
            streams = self._streams.items()
            tables = {n: write_parquet(self.folder / f"{n}.parquet", s.read()) for n, s in streams}
            of_adapter = sorted((self.folder / ADAPTER).glob("*"))
            adapter = {p.name: files.described(files.read(p)) for p in of_adapter if p.is_file()}
        self.claim.check()
        self.record.pop("streams", None)
        self._save_record(status=status, tables=tables, adapter=adapter, **fields)
        with suppress(StorageError):  # it costs space, not the cell
            files.remove(*_unneeded(self.folder, status))
        self._release()

    def interrupt(self, **fields: Any) -> None:
        """Keep rows and checkpoints, record ``interrupted`` and ``fields``, release the claim."""
        with suppress(StudyError):  # a cell that is "running" without a process is interrupted
            if self._error is None:
                self.sync()
        with suppress(StorageError):
            self.claim.check()
            self._save_record(status="interrupted", **fields)
        self._release()

    def _kept(self, first_step: int, gaps: bool) -> dict[str, pa.Table]:
        """The rows of the steps before ``first_step``. Tables without steps are made at the end."""
        record = read_record(self.folder)
        if record is None or record["status"] == "unreadable":
            raise Damaged(record["error"] if record else f"{RECORD} is missing")
        kept = {}
        for name in ("metrics", "probes"):
            if record["status"] in ENDED:
                rows = load_cell_table(self.folder, name, record)
            else:
                rows = read_stream(self._path(name), record.get("streams", {}).get(name))
            kept[name] = rows.filter(pc.less(rows["step"], first_step))
        last = kept["metrics"]["step"].to_pylist()[-1:]  # a stream is cut only at its end
        if last != [first_step - 1] and not gaps:
            raise Damaged(f"the last row before step {first_step} is of step {last}")
        return kept

    def _make_room(self, first_step: int) -> None:
        """Move finished results aside; delete rows of a killed process that can't be resumed."""
        record = read_record(self.folder)
        finished = [*self.folder.glob("*.parquet"), *self.folder.glob(ADAPTER)]
        resumable = record is not None and record["status"] in RESUMABLE
        if not resumable and ((self.folder / RECORD).exists() or finished):
            kept = {LOCK, CHECKPOINTS} if first_step else {LOCK}
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
            files.check_no_link(self.folder.parents[1] / ASIDE)
            target = self.folder.parents[1] / ASIDE / f"{self.folder.name}.{stamp}"
            files.make_folder(target)
            names = sorted(path.name for path in self.folder.iterdir() if path.name not in kept)
            for name in sorted(names, key=lambda name: name != RECORD):  # no cell without tables
                files.rename(self.folder / name, target / name)
            return
        if not first_step:  # first: without its rows, a checkpoint is of no use
            files.remove(self.folder / CHECKPOINTS)
        drafts = self.folder.glob(f"*{files.DRAFT}")
        files.remove(*finished, self.folder / ERROR_LOG, *drafts)

    def _release(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}
        self.claim.release()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.arrows"

    def _save_record(self, **fields: Any) -> None:
        record = self.record | fields
        record |= {SHA256: record_hash(record)}
        text = json.dumps(record, indent=2, sort_keys=True, allow_nan=True)
        files.write_text(self.folder / RECORD, text + "\n")
        self.record = record

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Context manager: after an error no more rows are written, as they would leave a gap."""
        if self._error is not None:
            raise self._error
        self.claim.check()
        try:
            yield
        except StudyError as error:
            self._error = error
            raise


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left in the folder of an ended cell that no other one holds."""
    if _unneeded(folder) and (claimed := files.claim(folder)):
        with claimed:
            record = read_record(folder)
            if record and record["status"] in ENDED:
                files.remove(*_unneeded(folder, record["status"]))


def _unneeded(folder: Path, status: str = "") -> list[Path]:
    # A failed cell can resume from an earlier checkpoint.
    found = [*folder.glob("*.arrows"), *folder.glob(f"*{files.DRAFT}")]
    return found if status == "failed" else [*found, *folder.glob(CHECKPOINTS)]
