"""The hash of a study's data: the same from one pass over the cells and from the files alone."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from study.store import CellWriter, derived, load_measured

ROW = pd.DataFrame([{"step": 0, "tokens": 9, "loss": 2.0}])


@pytest.fixture
def cell(tmp_path: Path) -> Callable[[str], CellWriter]:
    """``cell("id")``: the writer of a running cell of the study in ``tmp_path`` with one row."""

    def begin(cell_id: str) -> CellWriter:
        adapter = {"rank": 4, "alpha": 16.0, "scaling": "lora", "exponent": None}
        config = {
            "adapter": adapter,
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "train": {"steps": 1},
            "data": {"seed": 0},
            "seed": 0,
        }
        record = {"cell_id": cell_id, "study": "s", "model": "m", "data": "d", "gamma": 4.0}
        writer = CellWriter.open(tmp_path / "cells" / cell_id, "", record | {"config": config})
        writer.append("metrics", ROW)
        return writer

    return begin


def test_one_pass_has_the_hash_of_the_files(
    cell: Callable[[str], CellWriter], tmp_path: Path
) -> None:
    for name in ("good", "flipped", "gone", "foreign"):
        cell(name).close("complete", steps_done=0)
    running = cell("running")
    hashes = [load_measured(tmp_path).data_hash]
    assert hashes[-1] == derived.data_hash(tmp_path)

    table = tmp_path / "cells/flipped/metrics.parquet"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    (tmp_path / "cells/gone/metrics.parquet").unlink()
    (tmp_path / "cells/foreign/record.json").write_text("{}")
    running.append("metrics", ROW.assign(step=1))
    tables = load_measured(tmp_path)
    hashes.append(tables.data_hash)
    assert hashes[-1] == derived.data_hash(tmp_path)
    assert len(set(hashes)) == 2
    assert set(tables.cells["cell_id"]) == set(tables.metrics["cell_id"]) == {"good", "running"}

    running.close("complete", steps_done=1)
    hashes.append(load_measured(tmp_path).data_hash)
    assert hashes[-1] == derived.data_hash(tmp_path)
    assert len(set(hashes)) == 3


def test_every_record_is_read_once(
    cell: Callable[[str], CellWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from study.store import records

    for name in ("a", "b", "c"):
        cell(name).close("complete", steps_done=0)
    read: list[Path] = []
    parse = records.parse
    monkeypatch.setattr(records, "parse", lambda path: (read.append(path), parse(path))[1])
    load_measured(tmp_path)
    assert sorted(path.parent.name for path in read) == ["a", "b", "c"]
