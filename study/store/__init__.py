"""Results on disk: one folder per cell, written atomically; tidy tables out (docs/files.md)."""

from study.store.files import (
    Damaged,
    Lock,
    StorageError,
    claim,
    is_claimed,
    is_held,
    replacing,
    write_output,
)
from study.store.records import (
    ADAPTER,
    CHECKPOINTS,
    cell_folders,
    damage,
    find_cell,
    is_archived,
    is_done,
    load_records,
    now,
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
