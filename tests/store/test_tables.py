"""Results survive killed processes and are read as tidy tables."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

import study
from study.errors import StudyError
from study.store import (
    CellWriter,
    Damaged,
    is_done,
    last_metrics,
    load_cells,
    load_measured,
)
from study.sweeps.progress import render
from study.vocabulary.quantities import STATS

CONFIG = {
    "adapter": {"rank": 8, "scaling": "power", "exponent": 0.7, "alpha": 16.0}
    | {"init": "kaiming", "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
    "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.0},
    "train": {"steps": 3, "batch_size": 2, "accumulation": 1, "clip": None}
    | {"schedule": "constant", "warmup": 0},
    "data": {"seed": 0, "sequence_length": 48},
    "seed": 0,
    "precision": "float32",
}


def record(cell_id: str) -> dict:
    return {
        "cell_id": cell_id,
        "study": "s",
        "model": "tiny",
        "data": "pydoc",
        "gamma": 0.5,
        "device": "cpu",
        "config": CONFIG,
    }


def writer(study_dir: Path, cell_id: str = "abc") -> CellWriter:
    return CellWriter.open(study_dir / "cells" / cell_id, "x: 1\n", record(cell_id))


def metrics(step: int) -> pd.DataFrame:
    return pd.DataFrame([{"step": step, "tokens": 10 * step, "loss": 1.5, "seconds": 0.1}])


def probes(step: int) -> pd.DataFrame:
    row = {
        "step": step,
        "layer": f"l{step}",
        "block": 0,
        "kind": "q_proj",
        "site": "A",
        "batch": "train",
        "norm": 2.0,
    }
    return pd.DataFrame([row, row | {"layer": "other", "norm": math.inf}])


def test_round_trip(tmp_path: Path) -> None:
    cell = writer(tmp_path)
    for step in range(3):
        cell.append("metrics", metrics(step))
        cell.append("probes", probes(step))
    assert not is_done(cell.folder)
    running = load_measured(tmp_path)
    assert list(running.cells["status"]) == ["running"]
    assert list(running.metrics["step"]) == [0, 1, 2], "readable while it runs"

    cell.close("complete", seconds=1.0, steps_done=2)
    assert is_done(cell.folder)
    assert sorted(p.name for p in cell.folder.iterdir()) == [
        "config.yaml",
        "lock",
        "metrics.parquet",
        "probes.parquet",
        "record.json",
    ]
    tables = study.load(str(tmp_path))
    pd.testing.assert_frame_equal(tables.metrics, running.metrics)
    pd.testing.assert_frame_equal(tables.probes, running.probes)
    assert tables.metrics["eval_loss"].isna().all(), "missing is NaN, never 0"
    assert list(tables.probes["norm"]) == [2.0, math.inf] * 3, "non-finite values are kept"
    assert tables.probes["rms"].isna().all()
    assert list(tables.probes["layer"]) == ["l0", "other", "l1", "other", "l2", "other"]
    keys = ["cell_id", "step", "layer", "block", "kind", "site", "batch", "d_in", "d_out"]
    assert list(tables.probes.columns) == [*keys, *STATS]
    row = tables.cells.iloc[0]
    assert (row["rank"], row["scaling"], row["exponent"], row["targets"]) == (
        8.0,
        "power",
        0.7,
        "q_proj,v_proj",
    )
    assert (row["status"], row["seconds"], row["steps_done"]) == ("complete", 1.0, 2)


def test_a_killed_cell_is_interrupted_and_keeps_its_rows(tmp_path: Path) -> None:
    """SIGKILL between two appends."""
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_tables import *
        cell = writer(Path({str(tmp_path)!r}))
        for step in range(2):
            cell.append("metrics", metrics(step)); cell.append("probes", probes(step))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    tables = load_measured(tmp_path)
    assert list(tables.cells["status"]) == ["interrupted"]
    assert json.loads((tmp_path / "cells/abc/record.json").read_text())["status"] == "running"
    assert list(tables.metrics["step"]) == [0, 1]
    assert len(tables.probes) == 4

    cell = writer(tmp_path)  # training it again is no error, and starts with no rows
    assert len(load_measured(tmp_path).metrics) == 0
    cell.close("complete")


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_partial_row_at_the_end_is_not_read(tmp_path: Path, cut: int) -> None:
    cell = writer(tmp_path)
    for step in range(3):
        cell.append("metrics", metrics(step))
    stream = cell.folder / "metrics.arrows"
    os.truncate(stream, stream.stat().st_size - cut)
    assert list(load_measured(tmp_path).metrics["step"]) == [0, 1]


def test_one_writer_per_cell(tmp_path: Path) -> None:
    first = writer(tmp_path)
    with pytest.raises(StudyError, match="another process"):
        writer(tmp_path)
    first.close("complete")
    writer(tmp_path).close("complete")


def test_diverged_is_done_and_failed_is_not(tmp_path: Path) -> None:
    for status, done in (("diverged", True), ("failed", False)):
        cell = writer(tmp_path, status)
        cell.close(status, error="why")
        assert is_done(cell.folder) == done
    assert set(load_cells(tmp_path)["status"]) == {"diverged", "failed"}


def test_the_error_for_a_folder_without_a_study_names_those_nearby(tmp_path: Path) -> None:
    writer(tmp_path / "mine").close("complete")
    with pytest.raises(StudyError, match=r"no study in .*yours.*choose from .*mine"):
        load_measured(tmp_path / "yours")


def test_a_running_cell_has_done_the_steps_of_its_last_row(tmp_path: Path) -> None:
    cell = writer(tmp_path)
    assert math.isnan(load_cells(tmp_path)["steps_done"].astype(float).iloc[0]), (
        "before its first row"
    )
    for step in range(50):
        cell.append("metrics", metrics(step))
    assert load_cells(tmp_path)["steps_done"].iloc[0] == 49
    stream = cell.folder / "metrics.arrows"
    os.truncate(stream, stream.stat().st_size - 40)
    last = last_metrics(stream)
    assert last is not None
    assert (last["step"], last["tokens"], last["loss"]) == (48, 480, 1.5), "the last whole row"
    with pytest.raises(Damaged, match=r"metrics.arrows has \d+ bytes instead of \d+"):
        cell.close("complete", steps_done=49)
    cell.interrupt()
    assert load_cells(tmp_path)["status"].to_list() == ["interrupted"]


def test_unreadable_cells_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One has a bad record, and one a flipped bit in a table, which only its hash shows."""
    for name in ("good", "norecord", "flipped"):
        cell = writer(tmp_path, name)
        cell.append("metrics", metrics(0))
        cell.append("probes", probes(0))
        cell.close("complete", seconds=1.0, steps_done=0)
    (tmp_path / "cells" / "norecord" / "record.json").write_bytes(b"\0" * 10)
    table = tmp_path / "cells" / "flipped" / "probes.parquet"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)

    with caplog.at_level("WARNING"):
        tables = load_measured(tmp_path)
    assert tables.cells["cell_id"].to_list() == ["good"]
    assert set(tables.metrics["cell_id"]) == set(tables.probes["cell_id"]) == {"good"}
    first, second = (line.getMessage() for line in caplog.records)
    assert "1 of the cells of" in first
    assert "norecord: record.json is not valid JSON" in first
    assert "flipped: probes.parquet is damaged" in second
    assert second.endswith(f"run `study check {tmp_path}`")
    listed = load_cells(tmp_path, with_unreadable=True)
    assert dict(zip(listed["cell_id"], listed["status"], strict=True))["norecord"] == "unreadable"
    assert "norecord" in render(listed)
