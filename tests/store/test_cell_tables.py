"""A table that changed on disk is never read as other numbers."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from study.store import Damaged, load_cell_table
from study.store.rows import SCHEMAS, read_parquet, write_parquet

FLIPS = 60
"""Of one bit each, at random places. With 400: none was read as other numbers."""


@pytest.fixture
def probes() -> pa.Table:
    """200 rows of probes."""
    draw = np.random.default_rng(0)
    rows = [
        {"step": step, "layer": f"l{layer}", "block": layer, "kind": "q_proj", "site": "A"}
        | {"batch": "train", "norm": draw.normal(), "rms": draw.normal()}
        for step in range(20)
        for layer in range(10)
    ]
    frame = pd.DataFrame(rows).reindex(columns=SCHEMAS["probes"].names)
    return pa.Table.from_pandas(frame, schema=SCHEMAS["probes"], preserve_index=False)


@pytest.fixture
def written(tmp_path: Path, probes: pa.Table) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "probes.parquet"
    return path, write_parquet(path, probes)


def each_flip(path: Path, count: int, read: Callable[[], pa.Table]) -> list[pa.Table]:
    """The tables that are read after a bit was flipped; those that are refused are left out."""
    good, draw, found = path.read_bytes(), random.Random(1), []
    for _ in range(count):
        place = draw.randrange(8 * len(good))
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        with suppress(Damaged):
            found.append(read())
    path.write_bytes(good)
    return found


def test_a_flipped_bit_is_seen(written: tuple[Path, dict[str, Any]], probes: pa.Table) -> None:
    path, expected = written
    assert each_flip(path, FLIPS, lambda: read_parquet(path, probes.schema, None, expected)) == []
    assert read_parquet(path, probes.schema, None, expected).equals(probes)
    some = read_parquet(path, probes.schema, ["norm", "step"], expected)
    assert some.equals(probes.select(["norm", "step"]))


def test_without_a_hash_the_pages_are_compared(
    written: tuple[Path, dict[str, Any]], probes: pa.Table
) -> None:
    """Most flips are seen, and none ends in an error of another kind."""
    path, _ = written
    found = each_flip(path, FLIPS, lambda: read_parquet(path, probes.schema))
    assert len(found) < FLIPS
    assert sum(not table.equals(probes) for table in found) <= 1


def test_tables_have_checksums_of_their_pages(written: tuple[Path, dict[str, Any]]) -> None:
    path, _ = written
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    place = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[place + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"probes\.parquet is damaged: .*(CRC|crc|checksum)"):
        read_parquet(path, SCHEMAS["probes"])


def test_an_older_table_lacks_new_columns(tmp_path: Path, probes: pa.Table) -> None:
    older = probes.drop_columns(["rms"])
    path = tmp_path / "probes.parquet"
    expected = write_parquet(path, older)
    for content in (expected, None):
        table = read_parquet(path, SCHEMAS["probes"], None, content)
        assert table.schema.names == SCHEMAS["probes"].names
        assert table["rms"].null_count == len(table)


def test_the_record_says_which_files_count(tmp_path: Path, probes: pa.Table) -> None:
    """After a crash, a table may stand beside its stream; the record decides."""
    expected = write_parquet(tmp_path / "probes.parquet", probes)
    for status in ("running", "interrupted"):
        assert len(load_cell_table(tmp_path, "probes", record={"status": status})) == 0
    record = {"status": "complete", "tables": {"probes": expected}}
    assert load_cell_table(tmp_path, "probes", record=record).equals(probes)
    assert len(load_cell_table(tmp_path, "metrics", record=record)) == 0, "it had no rows"
    (tmp_path / "probes.parquet").unlink()
    with pytest.raises(Damaged, match=r"probes\.parquet is missing"):
        load_cell_table(tmp_path, "probes", record=record)


@pytest.mark.parametrize("columns", [None, ["rms", "step"], ["layer"]])
def test_a_file_is_read_as_by_a_data_set(
    written: tuple[Path, dict[str, Any]], columns: list[str] | None
) -> None:
    """Its types are those of the schema, so it is read in a shorter way."""
    path, expected = written
    by_data_set = pq.read_table(path, schema=SCHEMAS["probes"], columns=columns)
    found = read_parquet(path, SCHEMAS["probes"], columns, expected)
    assert found.equals(by_data_set)
    assert found.schema.equals(by_data_set.schema, check_metadata=True)
