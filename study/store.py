"""Results on disk: one folder per cell, written atomically; tidy tables out.

``results/<study>/cells/<cell_id>/`` holds ``config.yaml``, ``record.json`` and, once the cell is done,
``metrics.parquet`` and ``probes.parquet``. While it runs, rows are appended to Arrow IPC streams that can be read at
any moment and survive ``kill -9``. A lock held by the writing process makes sure that a cell has one writer.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import StudyError
from study.sites import STATS

STATUSES = ("complete", "running", "interrupted", "diverged", "failed")
"""``interrupted``: recorded as running, but its process is gone; a sweep starts it afresh."""

METRICS = ("loss", "loss_after", "eval_loss", "lr", "grad_norm", "clip_factor", "seconds")
"""``loss_after``: on the step's own batch, after its update; ``clip_factor``: what the gradient was multiplied by."""

_TEXT = pa.dictionary(pa.int32(), pa.string())
METRICS_SCHEMA = pa.schema([("step", pa.int32()), ("tokens", pa.int64())] + [(name, pa.float64()) for name in METRICS])
PROBES_SCHEMA = pa.schema(
    [("step", pa.int32()), ("layer", _TEXT), ("block", pa.int32()), ("kind", _TEXT), ("site", _TEXT), ("batch", _TEXT)]
    + [("d_in", pa.int32()), ("d_out", pa.int32())]
    + [(stat, pa.float32()) for stat in STATS]
)
DERIVED = ("exponents", "stable", "rates", "losses", "distances")
"""Tables made from a study's cells after they were trained."""
SCHEMAS = {"metrics": METRICS_SCHEMA, "probes": PROBES_SCHEMA}


class CellWriter:
    """The one writer of a cell: opens its folder, appends rows, and closes it as complete, diverged or failed."""

    def __init__(self, folder: Path, config_yaml: str, record: dict[str, Any]) -> None:
        """Raises :class:`StudyError` where the folder can't be written or another process is writing it."""
        self.folder, self.record = folder, record
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise StudyError(f"can't write results to {folder}: {error.strerror}; choose another results_dir") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"cell {folder.name} is being trained by another process: let that one finish") from None
        for name in SCHEMAS:
            (folder / f"{name}.parquet").unlink(missing_ok=True)
        _write_text(folder / "config.yaml", config_yaml)
        self._save_record(status="running")
        self._sinks = {name: (folder / f"{name}.arrows").open("wb", buffering=0) for name in SCHEMAS}
        self._streams = {name: pa.ipc.new_stream(self._sinks[name], SCHEMAS[name]) for name in SCHEMAS}

    def append(self, table: str, rows: pd.DataFrame) -> None:
        """Append to ``metrics`` or ``probes``; columns that ``rows`` lacks are NaN. On disk when it returns."""
        schema = SCHEMAS[table]
        arrow = pa.Table.from_pandas(rows.reindex(columns=schema.names), schema=schema, preserve_index=False)
        for batch in arrow.combine_chunks().to_batches():
            self._streams[table].write_batch(batch)

    def close(self, status: str, **fields: Any) -> None:
        """Turn the streams into parquet files and then, last, record ``status``: complete, diverged or failed."""
        for name in SCHEMAS:
            self._streams[name].close()
            self._sinks[name].close()
            stream = self.folder / f"{name}.arrows"
            partial = self.folder / f"{name}.parquet.partial"
            pq.write_table(_read_stream(stream, SCHEMAS[name]), partial, compression="zstd")
            partial.replace(self.folder / f"{name}.parquet")
            stream.unlink()
        self._save_record(status=status, **fields)
        self._lock.close()

    def _save_record(self, **fields: Any) -> None:
        self.record |= fields
        _write_text(
            self.folder / "record.json", json.dumps(self.record, indent=2, sort_keys=True, allow_nan=True) + "\n"
        )


@dataclass(frozen=True)
class StudyTables:
    """A study as tidy pandas frames; missing is NaN, strings that repeat are categorical.

    ``cells``: one row a cell, its configuration and how it ended. ``metrics``: a row a cell and step. ``probes``: a row
    a cell, step, layer and site, a column a stat. ``exponents``, ``stable``, ``rates``, ``losses`` and ``distances``:
    what ``study analyze`` and ``study distances`` last wrote, empty before.
    """

    cells: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    exponents: pd.DataFrame
    stable: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)
    losses: pd.DataFrame = field(default_factory=pd.DataFrame)
    distances: pd.DataFrame = field(default_factory=pd.DataFrame)


def load_tables(study_dir: str | os.PathLike[str]) -> StudyTables:
    """All tables of a study, running and diverged cells included as far as they got."""
    folder = Path(study_dir)
    cells = load_cells(folder)
    tables = {
        name: pa.concat_tables(
            [SCHEMAS[name].empty_table().add_column(0, "cell_id", pa.array([], _TEXT))]
            + [_with_id(cell_id, _read_table(folder / "cells" / cell_id, name)) for cell_id in cells["cell_id"]]
        )
        for name in SCHEMAS
    }
    frames = {name: table.unify_dictionaries().to_pandas() for name, table in tables.items()}
    for name in DERIVED:
        path = folder / f"{name}.parquet"
        frames[name] = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    return StudyTables(cells, **frames)


def load_cells(study_dir: str | os.PathLike[str]) -> pd.DataFrame:
    """The ``cells`` table, ordered by model, its bits, data, optimizer, learning rate, scaling, rank and seed.

    Raises :class:`StudyError` where the folder holds no study.
    """
    rows = [_cell_row(record, cell) for cell, record in _records(Path(study_dir))]
    if not rows:
        folder = Path(study_dir)
        near = [cells.parent for place in (folder, folder.parent) for cells in sorted(place.glob("*/cells"))]
        there = f", or choose from {', '.join(map(str, near))}" if near else ""
        raise StudyError(f"no study in {folder}: train one with `study train name=...`{there}")
    by = ["model", "quant_bits", "data", "optimizer", "lr", "scaling", "exponent", "rank", "seed"]
    return pd.DataFrame(rows).sort_values(by).reset_index(drop=True)


def load_records(study_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every cell's ``record.json`` as it stands: configuration, versions, commit, device, sources, how it ended."""
    return [record for _, record in _records(Path(study_dir))]


def is_done(cell_folder: Path) -> bool:
    """Whether a cell needs no training: it is complete, or it diverged, which training it again would only repeat."""
    record = _read_record(cell_folder)
    return record is not None and record["status"] in ("complete", "diverged")


def write_derived(study_dir: str | os.PathLike[str], name: str, table: pd.DataFrame) -> Path:
    """Replace one of the study's :data:`DERIVED` tables whole; the file it is in."""
    path = Path(study_dir) / f"{name}.parquet"
    partial = path.with_suffix(".parquet.partial")
    table.to_parquet(partial, index=False)
    partial.replace(path)
    return path


def _records(study_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for cell in sorted((study_dir / "cells").glob("*")):
        if (record := _read_record(cell)) is not None:
            yield cell, record


def _read_record(cell_folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((cell_folder / "record.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return record


def _cell_row(record: dict[str, Any], cell_folder: Path) -> dict[str, Any]:
    config = record["config"]
    adapter, optimizer, train = config["adapter"], config["optimizer"], config["train"]
    status = record["status"]
    if status == "running" and not _is_locked(cell_folder):
        status = "interrupted"
    return {
        "cell_id": record["cell_id"],
        "study": record["study"],
        "model": record["model"],
        "quant_bits": _number(config.get("model", {}).get("quant_bits")),
        "data": record["data"],
        "optimizer": optimizer["name"],
        "lr": optimizer["lr"],
        "loraplus_lr_ratio": optimizer.get("loraplus_lr_ratio", 1.0),
        "momentum": optimizer.get("momentum", float("nan")),
        "eps": optimizer.get("eps", float("nan")),
        "rank": float(adapter["rank"]),
        "scaling": adapter["scaling"],
        "exponent": _number(adapter["exponent"]),
        "alpha": adapter["alpha"],
        "gamma": record["gamma"],
        "init": adapter["init"],
        "targets": _one_word(adapter["targets"]),
        "dropout": adapter["dropout"],
        "seed": config["seed"],
        "data_seed": config["data"]["seed"],
        "sequence_length": config["data"]["sequence_length"],
        **{key: train[key] for key in ("steps", "batch_size", "accumulation", "clip", "schedule", "warmup")},
        "weight_decay": optimizer["weight_decay"],
        "precision": config["precision"],
        "status": status,
        "error": record.get("error"),
        "diverged_step": record.get("diverged_step"),
        "steps_done": record.get("steps_done"),
        "device": record["device"],
        "seconds": record.get("seconds"),
        "peak_memory_gb": record.get("peak_memory_gb"),
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _one_word(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else ",".join(targets)


def _is_locked(cell_folder: Path) -> bool:
    try:
        with (cell_folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _with_id(cell_id: str, table: pa.Table) -> pa.Table:
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [cell_id])
    return table.add_column(0, "cell_id", ids)


def _read_table(cell_folder: Path, name: str) -> pa.Table:
    finished = cell_folder / f"{name}.parquet"
    if finished.exists():
        return pq.read_table(finished, schema=SCHEMAS[name])
    return _read_stream(cell_folder / f"{name}.arrows", SCHEMAS[name])


def _read_stream(path: Path, schema: pa.Schema) -> pa.Table:
    """As many whole batches as the stream holds: a process that was killed may have left half of one."""
    batches = []
    try:
        with pa.ipc.open_stream(path) as stream:
            for batch in stream:
                batches.append(batch)
    except (pa.ArrowInvalid, FileNotFoundError, OSError):
        pass
    return pa.Table.from_batches(batches, schema=schema).unify_dictionaries()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
