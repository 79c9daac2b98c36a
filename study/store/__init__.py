"""Results on disk: one folder per cell, written atomically; tidy tables out.

``results/<study>/cells/<cell_id>/`` holds ``config.yaml`` and ``record.json`` and, when the cell
has ended, ``metrics.parquet``, ``probes.parquet`` and optionally ``truncations.parquet`` and
``adapter/``. While it trains, rows are appended to Arrow streams, which any process can read and
which survive ``kill -9``, and ``checkpoints/`` holds its state. A claim makes sure that a cell has
one writer. The record holds the hash of every table, so that damage is found when a table is read.
Results that are trained again are first moved to ``results/<study>/aside/``, which nothing reads.
"""

from study.store.cell_tables import load_cell_table, rows_of
from study.store.cells import cell_row, cells_table, load_cell, load_cells
from study.store.claims import Claim, ClaimLost, claim, is_claimed
from study.store.files import StorageError, is_held, lock, replacing, write_bytes, write_text
from study.store.records import (
    ADAPTER,
    CHECKPOINTS,
    STATUSES,
    cell_folders,
    damage,
    find_cell,
    is_done,
    load_records,
    read_cell,
    read_record,
)
from study.store.schemas import SCHEMAS
from study.store.streams import Damaged, last_metrics
from study.store.tables import StudyTables, load_measured, write_table
from study.store.writer import CellWriter

__all__ = [
    "ADAPTER",
    "CHECKPOINTS",
    "SCHEMAS",
    "STATUSES",
    "CellWriter",
    "Claim",
    "ClaimLost",
    "Damaged",
    "StorageError",
    "StudyTables",
    "cell_folders",
    "cell_row",
    "cells_table",
    "claim",
    "damage",
    "find_cell",
    "is_claimed",
    "is_done",
    "is_held",
    "last_metrics",
    "load_cell",
    "load_cell_table",
    "load_cells",
    "load_measured",
    "load_records",
    "lock",
    "read_cell",
    "read_record",
    "replacing",
    "rows_of",
    "write_bytes",
    "write_table",
    "write_text",
]
