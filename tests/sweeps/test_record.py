"""Rows are written when their numbers have left the device, and none is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from study.config import CellConfig
from study.store import CellWriter, load_measured
from study.sweeps.cells import plan
from study.sweeps.progress import Display
from study.sweeps.record import Recorder, config_yaml, record_of
from study.tracking.runs import tracker
from study.training.loop import CellStep
from study.training.results import Numbers

CPU = torch.device("cpu")


class Sent:
    """The numbers of one step. They have left the device when the test sets ``arrived``."""

    def __init__(self, step: int) -> None:
        self.step, self.arrived = step, False

    def frame(self, cell: int) -> pd.DataFrame:
        place = {
            "layer": "l",
            "block": 0,
            "kind": "q_proj",
            "site": "A",
            "batch": "train",
            "d_in": 4,
            "d_out": 4,
        }
        return pd.DataFrame([{"step": self.step, **place, "norm": float(cell)}])


@pytest.fixture
def recorder(cell: Callable[..., CellConfig], tmp_path: Path) -> Any:
    """The recorder of one cell."""
    (planned,) = plan([cell("name=mine", f"results_dir={tmp_path}")])
    writer = CellWriter.open(
        planned.folder, config_yaml(planned), record_of(planned, CPU, planned.sources.data)
    )
    with Display(planned.study_dir, {planned.id: planned.label}, 3) as display:
        tracked = tracker(planned.config.tracker, display.say)
        yield Recorder([planned], [writer], display, tracked)


def step(number: int, sent: Sent) -> CellStep:
    known = {"step": [number], "tokens": [9], "seconds": [1.0], "loss": [2.0]}
    return CellStep(0, Numbers(known, torch.tensor([True])), sent=[sent])  # type: ignore[list-item]


def written(tmp_path: Path) -> list[int]:
    return load_measured(tmp_path / "mine").probes["step"].to_list()


def test_a_row_is_written_when_its_numbers_have_arrived(recorder: Recorder, tmp_path: Path) -> None:
    late, later = Sent(0), Sent(1)
    recorder.add([step(0, late)])
    assert written(tmp_path) == []
    late.arrived = True
    recorder.add([step(1, later)])
    assert written(tmp_path) == [0]
    recorder.close(CPU)
    assert written(tmp_path) == [0, 1]


def test_an_error_loses_no_row_of_the_steps_before(recorder: Recorder, tmp_path: Path) -> None:
    recorder.add([step(0, Sent(0))])
    recorder.fail(RuntimeError("boom"), CPU)
    tables = load_measured(tmp_path / "mine")
    assert tables.cells["status"].to_list() == ["failed"]
    assert tables.metrics["step"].to_list() == [0]
    assert written(tmp_path) == [0]
