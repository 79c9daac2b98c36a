"""Results on disk: one folder per cell, written atomically; tidy tables out.

``results/<study>/cells/<cell_id>/`` holds ``config.yaml`` and ``record.json`` and, when the cell
has ended, ``metrics.parquet``, ``probes.parquet`` and optionally ``truncations.parquet`` and
``adapter/``. While it trains, rows are appended to Arrow streams, which any process can read and
which survive ``kill -9``. ``checkpoints/`` holds its state. The lock of a cell ensures that it has
one writer. The record holds the hash of every table, so reading a damaged table fails. Results that
are trained again are first moved to ``results/<study>/aside/``, which nothing reads. An archived
study is one Parquet file per table instead of the folders.
"""

from study.store.files import (
    Damaged,
    Lock,
    StorageError,
    claim,
    is_claimed,
    is_held,
    replacing,
    write_output,
    write_text,
)
from study.store.records import (
    ADAPTER,
    CHECKPOINTS,
    STATUSES,
    cell_folders,
    damage,
    find_cell,
    is_archived,
    is_done,
    load_records,
    provenance,
    read_cell,
    read_record,
)
from study.store.tables import (
    StudyTables,
    cell_row,
    load_cells,
    load_measured,
    rows_of,
    write_table,
)
from study.store.writer import CellWriter
