"""The one writer of a cell."""

import json
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import StudyError
from study.store.files import lock, replacing, write_text
from study.store.schemas import SCHEMAS
from study.store.streams import read_stream

LOCK = "lock"
"""The file in a cell's folder that its writer holds."""
ERROR_LOG = "error.log"
"""The file in a cell's folder with the traceback of an unexpected error."""
_PATIENCE = 1.0
"""Seconds to wait for the lock. A reader that checks it holds it for some microseconds."""


class CellWriter:
    """Opens a cell's folder, appends rows, and closes the cell with its status.

    ``kill -9`` at any moment costs the cell, which is trained again, and no other.
    """

    def __init__(self, folder: Path, config_yaml: str, record: dict[str, Any]) -> None:
        """Raises :class:`StudyError` if the folder can't be written, or if another process is
        writing it.
        """
        self.folder, self.record = folder, record
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder / LOCK, _PATIENCE)
            self._lock.acquire()
        except TimeoutError:
            raise StudyError(
                f"cell {folder.name} is being trained by another process: wait until it has ended"
            ) from None
        except OSError as error:
            raise StudyError(
                f"can't write results to {folder}: {error.strerror}; choose another results_dir"
            ) from None
        self._clear()
        write_text(folder / "config.yaml", config_yaml)
        self._save_record(status="running")
        self._streams: dict[str, tuple[Any, pa.RecordBatchStreamWriter]] = {}

    def append(self, table: str, rows: pd.DataFrame) -> None:
        """Append to one of :data:`~study.store.schemas.SCHEMAS`. Columns absent from ``rows`` are
        NaN. Any process can read the rows when it returns.
        """
        schema = SCHEMAS[table]
        if table not in self._streams:
            sink = (self.folder / f"{table}.arrows").open("wb", buffering=0)
            self._streams[table] = sink, pa.ipc.new_stream(sink, schema)
        arrow = pa.Table.from_pandas(
            rows.reindex(columns=schema.names), schema=schema, preserve_index=False
        )
        for batch in arrow.combine_chunks().to_batches():
            self._streams[table][1].write_batch(batch)

    def write_error_log(self, error: BaseException) -> Path:
        """Write the traceback of ``error`` and return the file's path."""
        path = self.folder / ERROR_LOG
        write_text(path, "".join(traceback.format_exception(error)))
        return path

    def close(self, status: str, **fields: Any) -> None:
        """Turn the streams into parquet files; then record ``status`` and ``fields``.

        ``status``: one of :data:`study.vocabulary.statuses.ENDED`.
        """
        for name, (sink, written) in self._streams.items():
            written.close()
            sink.close()
            stream = self.folder / f"{name}.arrows"
            with replacing(self.folder / f"{name}.parquet") as draft:
                pq.write_table(read_stream(stream, SCHEMAS[name]), draft, compression="zstd")
            stream.unlink()
        self._save_record(status=status, **fields)
        self._lock.release()

    def _clear(self) -> None:
        """Delete the tables and the error of an earlier run and the drafts of a killed one."""
        drafts = ("record.json.*", "config.yaml.*", f"{ERROR_LOG}*")
        for pattern in (*(f"{name}.*" for name in SCHEMAS), *drafts):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _save_record(self, **fields: Any) -> None:
        self.record |= fields
        text = json.dumps(self.record, indent=2, sort_keys=True, allow_nan=True)
        write_text(self.folder / "record.json", text + "\n")
