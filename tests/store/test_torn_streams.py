"""Streams whose end is what a disk holds after a power cut: a part of a write, then zeros."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from study.store.schemas import SCHEMAS
from study.store.streams import Stream, last_metrics, read_synced


def rows(step: int) -> pa.Table:
    frame = pd.DataFrame({"step": [step], "loss": [1.5]}).reindex(columns=SCHEMAS["metrics"].names)
    return pa.Table.from_pandas(frame, schema=SCHEMAS["metrics"], preserve_index=False)


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    stream = Stream(tmp_path / "metrics.arrows", rows(0))
    for step in (1, 2):
        stream.append(rows(step))
    return stream


def test_rows_after_those_that_were_synced_are_not_kept(stream: Stream) -> None:
    """A batch of which only the description is on disk reads as a row of zeros."""
    synced = {"streams": {"metrics": stream.written}}
    stream.append(rows(3))
    whole = stream.path.read_bytes()
    for part in range(synced["streams"]["metrics"]["bytes"], len(whole), 7):
        stream.path.write_bytes(whole[:part] + bytes(len(whole) - part))
        kept = read_synced(stream.path, SCHEMAS["metrics"], synced)
        assert kept["step"].to_pylist() == [0, 1, 2]


def test_the_last_row_of_any_content_is_read_without_an_error(stream: Stream) -> None:
    whole = stream.path.read_bytes()
    for part in range(0, len(whole), 5):
        for tail in (b"", bytes(len(whole) - part)):
            stream.path.write_bytes(whole[:part] + tail)
            last = last_metrics(stream.path)
            assert last is None or last["step"] in (0, 1, 2)
