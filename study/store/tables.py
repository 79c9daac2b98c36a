"""The tables of one cell and of a study. Rows of ``cells`` come from records, so a new
configuration key becomes a column without a change here.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from study.errors import StudyError, command_line, printable
from study.store.files import Damaged
from study.store.records import (
    archive_of,
    archived_file,
    cell_folders,
    is_archived,
    no_study,
    read_cell,
    read_once,
    read_record,
)
from study.store.rows import SCHEMAS, TEXT, read_parquet, read_stream, write_parquet
from study.vocabulary.scaling import FULL
from study.vocabulary.statuses import ENDED, RESUMABLE

DISTANCES = "distances"
"""The table of ``study distances``, which trains. It lies in the study's folder."""

_ID = pa.field("cell_id", TEXT)
_log = logging.getLogger(__name__)


# The table of cells.

FIRST = (
    *("cell_id", "study", "model", "quant_bits", "data", "optimizer", "lr", "loraplus_lr_ratio"),
    *("momentum", "eps", "rank", "scaling", "exponent", "crossover", "alpha", "gamma", "init"),
    *("targets", "adapted_share", "dropout", "seed", "data_seed", "sequence_length", "steps"),
    *("batch_size", "accumulation"),
    *("clip", "schedule", "warmup", "weight_decay", "precision", "status", "error"),
    *("diverged_step", "stuck_step", "steps_done", "device", "seconds", "peak_memory_gb"),
    *("supervised", "train_rows"),
)
"""The columns of every ``cells`` table, in order. Those of other keys and of sources follow."""

NOT_COLUMNS = (
    *("name", "results_dir", "plots_dir", "device", "pack", "checkpoint", "tracker"),
    *("model.name", "model.path", "data.name", "data.path"),  # see the columns model and data
    *("data.format", "data.chat_template", "data.split", "data.subset"),  # see data_sha256
    *("adapter.contraction", "adapter.path", "train.save_adapter", "train.epochs"),
    *("train.shard", "train.checkpointing"),
    "expects",
)
"""Configuration keys and groups without a column. They are not part of a cell's identity
(:func:`study.config.identity`), or the record has a column for them."""

GROUPS = ("", "adapter", "train", "data", "model", "optimizer", "probes")
"""The groups of keys with columns; "" for keys outside a group.

A column has the name of the key's last word. If an earlier group has that word, and for every key
of ``probes``, it is the whole key: ``optimizer_alpha``, ``probes_steps``."""

ORDER = ("model", "quant_bits", "data", "optimizer", "lr", "scaling", "exponent", "rank", "seed")


def cells_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The ``cells`` table of these records, sorted by :data:`ORDER`."""
    rows = [cell_row(record) for record in records]
    return pd.DataFrame(rows).sort_values(list(ORDER)).reset_index(drop=True)


def cell_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of the ``cells`` table: every key of its identity (:data:`GROUPS`), and the
    first digits of the hash of each source. Lists are strings."""
    row = dict.fromkeys(FIRST, math.nan)
    configured: set[str] = set()
    config = record["config"]
    for group in GROUPS:
        for word, value in (config.get(group, {}) if group else config).items():
            key = f"{group}.{word}" if group else word
            if key in NOT_COLUMNS or isinstance(value, dict):
                continue
            name = "optimizer" if key == "optimizer.name" else word
            if name in configured or group == "probes":
                name = key.replace(".", "_")  # its words also name columns of other tables
            configured.add(name)
            row[name] = _plain(value)
    if config.get("precision") == "bf16":  # the forms differ by more than rounding noise
        form = config["adapter"].get("contraction", "auto")
        row["contraction"] = _plain("factored" if form == "auto" else form)  # as before a choice
    row |= {name: _plain(record[name]) for name in FIRST if name in record}
    rows = record.get("rows") or {}
    row["supervised"], row["train_rows"] = (rows.get(k, math.nan) for k in ("supervised", "train"))
    row["rank"] = float(row["rank"])
    if row["scaling"] == FULL:
        row["alpha"] = row["gamma"] = math.nan  # full fine-tuning has no adapter
    if "peft" not in record:  # a Trainer's record hashes names and settings, not contents
        sources = record.get("sources", {})
        row |= {f"{name}_sha256": sha[:12] for name, sha in sources.items() if sha}
    return row


def _plain(value: Any) -> Any:
    if value is None:
        return math.nan
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


# The rows of one cell.


def load_cell_table(
    cell_folder: Path, name: str, record: Mapping[str, Any] | None = None
) -> pa.Table:
    """The rows of one of :data:`SCHEMAS` so far, in the order of writing. ``record``: the cell's,
    if the caller has read it."""
    stream, finished = cell_folder / f"{name}.arrows", cell_folder / f"{name}.parquet"
    if record is None or (record["status"] in RESUMABLE and not stream.exists()):
        record = read_record(cell_folder) or {"status": "running"}  # it may have ended just now
    if record["status"] == "unreadable":
        raise Damaged(record["error"])
    if is_archived(cell_folder):
        about = archive_of(cell_folder.parents[1]).tables.get(name)
        path = archived_file(cell_folder.parents[1], name, about)
        return _archived(path)(cell_folder.name) if about else SCHEMAS[name].empty_table()
    expected = record.get("tables", {}).get(name)
    if record["status"] in ENDED and (expected or finished.exists()):
        return read_parquet(finished, SCHEMAS[name], expected)
    return read_stream(stream)


@read_once
def _archived(path: Path) -> Callable[[str], pa.Table]:
    """A function that returns the rows of a cell in a table of an archive."""
    name = path.name.partition(".")[0]
    expected = archive_of(path.parent).tables[name]
    try:
        table = read_parquet(path, SCHEMAS[name].insert(0, _ID), expected)
    except Damaged as error:
        raise StudyError(f"{path.parent} is damaged ({error}): get it again") from None
    table = table.unify_dictionaries().combine_chunks()
    ids = table["cell_id"].to_pandas()
    places = pd.Series(range(len(ids))).groupby(ids, observed=True).agg(["min", "size"])
    slices = {cell: tuple(place) for cell, *place in places.itertuples()}
    rows = table.drop_columns(["cell_id"])
    return lambda cell_id: rows.slice(*slices.get(cell_id, (0, 0)))


def rows_of(cell_folder: Path, table: str) -> pd.DataFrame:
    return load_cell_table(cell_folder, table).to_pandas()


def with_id(cell_id: str, table: pa.Table) -> pa.Table:
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [cell_id])
    return table.add_column(0, _ID, ids)


# A study.


def load_cells(study_dir: str | os.PathLike[str], with_unreadable: bool = False) -> pd.DataFrame:
    """The ``cells`` table of a study. Unreadable cells are left out with a warning, unless asked
    for."""
    found = map(read_cell, cell_folders(study_dir))
    records = [record for record in found if record is not None]
    bad = {r["cell_id"]: r["error"] for r in records if r["status"] == "unreadable"}
    bad = {} if with_unreadable else bad
    return _cells(study_dir, [r for r in records if r["cell_id"] not in bad], bad)


def _cells(
    study_dir: str | os.PathLike[str], records: list[dict[str, Any]], left_out: Mapping[str, str]
) -> pd.DataFrame:
    """The table of ``records``, with one warning for cells ``left_out`` (reasons by id)."""
    if left_out:
        cell, reason = next(iter(left_out.items()))
        _log.warning(
            "%d of the cells of %s can't be read and are left out (%s: %s): run `study check %s`",
            *(len(left_out), study_dir, cell, printable(reason), study_dir),
        )
    if not records:
        raise no_study(Path(study_dir))
    return cells_table(records)


@dataclass(frozen=True)
class StudyTables:
    """A study as pandas frames. Missing is NaN; strings that repeat are categorical.

    ``cells`` has a row per cell, ``metrics`` one per cell and step, and ``probes`` one per cell,
    step, layer, site and batch. :func:`study.analysis.load_tables` computes ``exponents``,
    ``stable``, ``rates`` and ``losses`` from them. docs/files.md has the columns.
    """

    cells: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    exponents: pd.DataFrame = field(default_factory=pd.DataFrame)
    stable: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)
    losses: pd.DataFrame = field(default_factory=pd.DataFrame)
    distances: pd.DataFrame = field(default_factory=pd.DataFrame)
    truncations: pd.DataFrame = field(default_factory=pd.DataFrame)
    examples: pd.DataFrame = field(default_factory=pd.DataFrame)


def load_measured(study_dir: str | os.PathLike[str]) -> StudyTables:
    """The measured tables of a study, with the rows so far of running and diverged cells."""
    records: list[dict[str, Any]] = []
    tables: dict[str, dict[str, pa.Table]] = {}
    damaged: dict[str, str] = {}
    for cell in cell_folders(study_dir):
        if (record := read_cell(cell)) is None:
            continue
        try:
            tables[cell.name] = {name: load_cell_table(cell, name, record) for name in SCHEMAS}
            records.append(record)
        except Damaged as error:
            damaged[cell.name] = str(error)
    cells = _cells(study_dir, records, damaged)
    frames = {}
    for name in SCHEMAS:
        parts = [with_id(cell, tables[cell].pop(name)) for cell in cells["cell_id"]]
        whole = pa.concat_tables(parts).unify_dictionaries()
        del parts
        frames[name] = whole.to_pandas(split_blocks=True, self_destruct=True)
    distances = distances_of(Path(study_dir))
    if len(distances):  # those of deleted cells are left out
        known = distances["cell_id"].astype(str).isin(set(cells["cell_id"]))
        distances = distances[known].reset_index(drop=True)
    return StudyTables(cells, **frames, distances=distances)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    write_parquet(path, pa.Table.from_pandas(table, preserve_index=False))
    return path


def distances_of(study_dir: Path) -> pd.DataFrame:
    """The table of ``study distances``; empty if there is none. StudyError if it is damaged."""
    archive = archive_of(study_dir)
    about = archive.tables.get(DISTANCES)
    path = archived_file(study_dir, DISTANCES, about)
    if not path.exists() or (archive.records and not about):
        return pd.DataFrame()
    try:
        return read_parquet(path, None, about).to_pandas()
    except Damaged as error:
        again = command_line("distances", study_dir)
        raise StudyError(f"{error}: delete it and run `{again}`") from None
