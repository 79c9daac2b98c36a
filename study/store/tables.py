"""Results on disk: one folder per cell, written atomically; tidy tables out.

``results/<study>/cells/<cell_id>/`` holds ``config.yaml``, ``record.json`` and, once the cell is done,
``metrics.parquet``, ``probes.parquet`` and, if asked for, ``truncations.parquet``. While it runs, rows are appended to
Arrow IPC streams that can be read at any moment and survive ``kill -9``. A lock held by the writing process makes sure
that a cell has one writer.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import StudyError
from study.vocabulary.quantities import STATS

STATUSES = ("complete", "running", "interrupted", "diverged", "failed")
"""``interrupted``: recorded as running, but its process is gone; a sweep starts it afresh."""

ADAPTER = "adapter"
"""The folder in a cell's that holds its trained adapter in PEFT's format, where ``train.save_adapter`` asked for it."""

METRICS = (
    "loss",
    "loss_after",
    "eval_loss",
    "exact_match",
    "lr",
    "grad_norm",
    "clip_factor",
    "seconds",
)
"""``loss_after``: on the step's own batch, after its update; ``clip_factor``: what the gradient was multiplied by;
``exact_match``: the share of held-out questions answered right."""

_TEXT = pa.dictionary(pa.int32(), pa.string())
METRICS_SCHEMA = pa.schema(
    [("step", pa.int32()), ("tokens", pa.int64())] + [(name, pa.float64()) for name in METRICS]
)
PROBES_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("layer", _TEXT),
        ("block", pa.int32()),
        ("kind", _TEXT),
        ("site", _TEXT),
        ("batch", _TEXT),
    ]
    + [("d_in", pa.int32()), ("d_out", pa.int32())]
    + [(stat, pa.float32()) for stat in STATS]
)
TRUNCATIONS_SCHEMA = pa.schema([(name, pa.float64()) for name in ("kept", "loss", "share")])
"""After the last step: the held-out loss with every delta_w cut to ``kept`` singular directions, and the share of its
squared norm that they hold, the mean over layers."""
DERIVED = ("exponents", "stable", "rates", "losses", "distances")
"""Tables made from a study's cells after they were trained."""
SCHEMAS = {"metrics": METRICS_SCHEMA, "probes": PROBES_SCHEMA, "truncations": TRUNCATIONS_SCHEMA}
"""The tables that a cell writes; one that nothing was appended to has no file."""
_MESSAGE = b"\xff\xff\xff\xff"
"""What every message of an Arrow stream begins with."""
_TAIL = 8192
"""Bytes at the end of a ``metrics`` stream that hold its last rows: one takes about 700."""


class CellWriter:
    """The one writer of a cell: opens its folder, appends rows, and closes it as complete, diverged or failed."""

    def __init__(self, folder: Path, config_yaml: str, record: dict[str, Any]) -> None:
        """Raises :class:`StudyError` where the folder can't be written or another process is writing it."""
        self.folder, self.record = folder, record
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise StudyError(
                f"can't write results to {folder}: {error.strerror}; choose another results_dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(
                f"cell {folder.name} is being trained by another process: let that one finish"
            ) from None
        for name in SCHEMAS:
            for kind in ("parquet", "arrows"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
        _write_text(folder / "config.yaml", config_yaml)
        self._save_record(status="running")
        self._streams: dict[str, tuple[Any, pa.RecordBatchStreamWriter]] = {}

    def append(self, table: str, rows: pd.DataFrame) -> None:
        """Append to one of :data:`SCHEMAS`; columns that ``rows`` lacks are NaN. On disk when it returns."""
        schema = SCHEMAS[table]
        if table not in self._streams:
            sink = (self.folder / f"{table}.arrows").open("wb", buffering=0)
            self._streams[table] = sink, pa.ipc.new_stream(sink, schema)
        arrow = pa.Table.from_pandas(
            rows.reindex(columns=schema.names), schema=schema, preserve_index=False
        )
        for batch in arrow.combine_chunks().to_batches():
            self._streams[table][1].write_batch(batch)

    def close(self, status: str, **fields: Any) -> None:
        """Turn the streams into parquet files and then, last, record ``status``: complete, diverged or failed."""
        for name, (sink, written) in self._streams.items():
            written.close()
            sink.close()
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
            self.folder / "record.json",
            json.dumps(self.record, indent=2, sort_keys=True, allow_nan=True) + "\n",
        )


@dataclass(frozen=True)
class StudyTables:
    """A study as tidy pandas frames; missing is NaN, strings that repeat are categorical.

    ``cells``: one row a cell, its configuration and how it ended. ``metrics``: a row a cell and step. ``probes``: a row
    a cell, step, layer and site, a column a stat. ``truncations``: a row a cell and lower rank, where
    ``probes.truncations`` asked for it. ``exponents``, ``stable``, ``rates``, ``losses`` and ``distances``: what
    ``study analyze`` and ``study distances`` last wrote, empty before.
    """

    cells: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    exponents: pd.DataFrame
    stable: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)
    losses: pd.DataFrame = field(default_factory=pd.DataFrame)
    distances: pd.DataFrame = field(default_factory=pd.DataFrame)
    truncations: pd.DataFrame = field(default_factory=pd.DataFrame)


def load_tables(study_dir: str | os.PathLike[str]) -> StudyTables:
    """All tables of a study, running and diverged cells included as far as they got."""
    folder = Path(study_dir)
    cells = load_cells(folder)
    tables = {
        name: pa.concat_tables(
            [SCHEMAS[name].empty_table().add_column(0, "cell_id", pa.array([], _TEXT))]
            + [
                _with_id(cell_id, _read_table(folder / "cells" / cell_id, name))
                for cell_id in cells["cell_id"]
            ]
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
    rows = [row for cell in cell_folders(study_dir) if (row := load_cell(cell)) is not None]
    if not rows:
        folder = Path(study_dir)
        near = [
            cells.parent
            for place in (folder, folder.parent)
            for cells in sorted(place.glob("*/cells"))
        ]
        there = f", or choose from {', '.join(map(str, near))}" if near else ""
        raise StudyError(f"no study in {folder}: train one with `study train name=...`{there}")
    return cells_table(rows)


def cells_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of :func:`load_cell` as the ``cells`` table, in its order."""
    by = ["model", "quant_bits", "data", "optimizer", "lr", "scaling", "exponent", "rank", "seed"]
    return pd.DataFrame(rows).sort_values(by).reset_index(drop=True)


def cell_folders(study_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders of a study's cells, by id; some may have no record yet."""
    return sorted((Path(study_dir) / "cells").glob("*"))


def load_cell(cell_folder: Path) -> dict[str, Any] | None:
    """One row of the ``cells`` table; None where the cell has no record."""
    record = read_cell(cell_folder)
    return None if record is None else cell_row(record)


def load_cell_table(cell_folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One cell's ``metrics`` or ``probes``, all columns or some, as far as it got; rows never change place."""
    return _read_table(cell_folder, name, columns)


def load_records(study_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every cell's ``record.json`` as it stands: configuration, versions, commit, device, sources, how it ended."""
    return [
        record for cell in cell_folders(study_dir) if (record := _read_record(cell)) is not None
    ]


def find_cell(study_dir: str | os.PathLike[str], cell: str) -> tuple[Path, dict[str, Any]]:
    """The folder and record of the cell whose id begins with ``cell``. Raises :class:`StudyError` unless it is one."""
    folders = cell_folders(study_dir)
    found = [(folder, record) for folder in folders if (record := _read_record(folder)) is not None]
    if not found:
        load_cells(study_dir)  # says what is there instead
    hits = [(folder, record) for folder, record in found if folder.name.startswith(cell)]
    if len(hits) != 1:
        which = "no cell" if not hits else f"{len(hits)} cells"
        ids = ", ".join(folder.name for folder, _ in (hits or found)[:8])
        raise StudyError(
            f"{which} of {study_dir} begins with {cell!r}: choose from {ids}{', ...' * (len(found) > 8)}"
        )
    return hits[0]


def rows_of(cell_folder: Path, table: str) -> pd.DataFrame:
    """One cell's ``metrics`` or ``probes``, as far as it got; no rows where there is no such cell."""
    return _read_table(cell_folder, table).to_pandas()


def is_done(cell_folder: Path, with_adapter: bool = False) -> bool:
    """Whether a cell needs no training: it is complete, or it diverged, which training it again would only repeat.

    ``with_adapter``: a complete one counts only if its trained adapter was kept.
    """
    record = _read_record(cell_folder)
    if record is None or (
        with_adapter and record["status"] == "complete" and not (cell_folder / ADAPTER).is_dir()
    ):
        return False
    return record["status"] in ("complete", "diverged")


def read_cell(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as of now, None where there is none: a running cell's ``steps_done`` and ``seconds`` are those of
    the last row it wrote, and one whose process is gone is ``interrupted``."""
    record = _read_record(cell_folder)
    if record is None or record["status"] != "running":
        return record
    last = last_metrics(cell_folder / "metrics.arrows")
    so_far = {} if last is None else {"steps_done": last["step"], "seconds": last["seconds"]}
    return (
        record | so_far | {"status": "running" if is_held(cell_folder / "lock") else "interrupted"}
    )


def last_metrics(stream: Path) -> dict[str, Any] | None:
    """The last whole row of a ``metrics`` stream, read from its end however long it is; None where there is none."""
    try:
        with stream.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
    except OSError:
        return None
    start = len(tail)
    while (start := tail.rfind(_MESSAGE, 0, start)) >= 0:
        try:
            batch = pa.ipc.read_record_batch(
                pa.ipc.read_message(pa.py_buffer(tail[start:])), METRICS_SCHEMA
            )
        except (
            pa.ArrowInvalid,
            EOFError,
            OSError,
        ):  # half a row, the schema, or a number that looks like a row's start
            continue
        if len(batch):
            return batch.slice(len(batch) - 1).to_pylist()[0]
    return None


def write_derived(study_dir: str | os.PathLike[str], name: str, table: pd.DataFrame) -> Path:
    """Replace one of the study's :data:`DERIVED` tables whole; the file it is in."""
    path = Path(study_dir) / f"{name}.parquet"
    partial = path.with_suffix(".parquet.partial")
    table.to_parquet(partial, index=False)
    partial.replace(path)
    return path


def _read_record(cell_folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((cell_folder / "record.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return record


def cell_row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a row of the ``cells`` table."""
    config = record["config"]
    adapter, optimizer, train = config["adapter"], config["optimizer"], config["train"]
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
        **{
            key: train[key]
            for key in ("steps", "batch_size", "accumulation", "clip", "schedule", "warmup")
        },
        "weight_decay": optimizer["weight_decay"],
        "precision": config["precision"],
        "status": record["status"],
        "error": record.get("error"),
        "diverged_step": record.get("diverged_step"),
        "steps_done": record.get("steps_done"),
        "device": record.get("device"),
        "seconds": record.get("seconds"),
        "peak_memory_gb": record.get("peak_memory_gb"),
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _one_word(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else ",".join(targets)


def is_held(path: Path) -> bool:
    """Whether a process that lives holds the file's lock."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _with_id(cell_id: str, table: pa.Table) -> pa.Table:
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [cell_id])
    return table.add_column(0, "cell_id", ids)


def _read_table(cell_folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    finished = cell_folder / f"{name}.parquet"
    if finished.exists():
        return pq.read_table(
            finished, schema=SCHEMAS[name], columns=None if columns is None else list(columns)
        )
    return _read_stream(cell_folder / f"{name}.arrows", SCHEMAS[name], columns)


def _read_stream(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """As many whole batches as the stream holds: a process that was killed may have left half of one."""
    wanted = [field for field in schema if columns is None or field.name in columns]
    options = pa.ipc.IpcReadOptions(
        included_fields=[schema.get_field_index(field.name) for field in wanted]
    )
    batches = []
    try:
        with pa.ipc.open_stream(path, options=options) as stream:
            for batch in stream:
                batches.append(batch)
    except (pa.ArrowInvalid, FileNotFoundError, OSError):
        pass
    table = pa.Table.from_batches(batches, schema=pa.schema(wanted)).unify_dictionaries()
    return table if columns is None else table.select(list(columns))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
