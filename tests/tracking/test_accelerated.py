"""``tracker=tensorboard``, ``tracker=trackio`` ...: they hold what the store holds."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import study
from study.config import TrackerConfig
from study.config.compose import CONF
from study.tracking.runs import ARGUMENTS, Tracker, flat
from study.vocabulary.extras import NONE, TRACKERS, WANDB
from study.vocabulary.quantities import MODEL_WIDE

Process = Callable[..., subprocess.CompletedProcess[str]]
SWEEP = ["-m", "adapter.rank=2", "adapter.scaling=rslora,0.75", "optimizer.lr=1e-3", "pack.fold=2"]


def in_tensorboard(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """By run and metric, the value at each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run in (folder / "results/default/tensorboard").iterdir():
        events = EventAccumulator(str(run)).Reload()
        found[run.name] = {
            tag: {event.step: event.value for event in events.Scalars(tag)}
            for tag in events.Tags()["scalars"]
        }
    return found


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_prints_nothing_and_holds_what_the_store_holds(
    tmp_path: Path, study_process: Process, name: str
) -> None:
    pytest.importorskip(name)
    where = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    ran = study_process(tmp_path, "train", *SWEEP, f"tracker={name}", **where)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert "tracking stopped" not in ran.stderr
    if name == "trackio":
        assert list((tmp_path / "trackio").iterdir())
        return
    tables, runs = study.load(str(tmp_path / "results/default")), in_tensorboard(tmp_path)
    assert len(tables.cells) == len(runs) == 2
    compared = 0
    for cell in tables.cells.itertuples():
        [run] = [run for run in runs if run.endswith(str(cell.cell_id))]
        rule = "rslora" if cell.scaling == "rslora" else "power p=0.75"
        assert run.startswith(f"adamw {rule} rank 2 seed 0 lr 0.001 alpha 16.0 ")
        metrics = tables.metrics[tables.metrics["cell_id"] == cell.cell_id].set_index("step")
        for metric in metrics.columns.drop("cell_id"):
            stored = metrics[metric].dropna().to_dict()
            assert runs[run].get(metric, {}) == pytest.approx(stored, rel=1e-6), metric
            compared += len(stored)
        probes = tables.probes[tables.probes["cell_id"] == cell.cell_id]
        rows = probes[(probes["site"] == "adapter_grad") & (probes["layer"] == MODEL_WIDE)]
        stored = dict(zip(rows["step"], rows["norm"].astype(float), strict=True))
        assert runs[run][f"grad_norm/{MODEL_WIDE}"] == pytest.approx(stored, rel=1e-6)
    assert compared > 40


def test_the_trackers_are_accelerates() -> None:
    tracking = pytest.importorskip("accelerate.tracking")
    assert set(TRACKERS) == set(tracking.LOGGER_TYPE_TO_CLASS)
    assert set(ARGUMENTS) == set(TRACKERS) - {WANDB}
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("tracker/*.yaml")}
    assert set(files) == {NONE, *TRACKERS}
    assert all(content["name"] == name for name, content in files.items())


def test_every_value_of_the_configuration_can_be_stored(cell: Callable[..., Any]) -> None:
    from study.sweeps.cells import plan

    [planned] = plan([cell("adapter.rank=inf", "adapter.scaling=rslora", "optimizer=sgd")])
    stored = flat(planned.description)
    assert stored["adapter.rank"] == "inf"
    assert stored["optimizer.lr"] == 1e-2
    assert stored["cell_id"] == planned.id
    assert "adapter.path" not in stored, "it has no value"
    assert not any("key" in name or "token" in name.split(".") for name in stored)
    assert all(isinstance(value, bool | int | float | str) for value in stored.values())


class Written(Tracker):
    """Runs that say in what order they are written."""

    def __init__(self, name: str) -> None:
        super().__init__(TrackerConfig(name), pytest.fail)
        self.events: list[str] = []

    def open(self, record: dict[str, Any], name: str) -> str:
        self.events.append(f"{name} opens")
        return name

    def write(self, run: str, row: dict[str, float], step: int) -> None:
        self.events.append(f"{run} {step}")

    def close(self, run: str, status: str, fields: Mapping[str, Any]) -> None:
        self.events.append(f"{run} closes")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_cells_of_a_fold_are_written_one_after_the_other_where_they_must(name: str) -> None:
    runs = Written(name)
    for cell in "abc":
        runs.start({"cell_id": cell}, cell)
    for step in range(2):
        for cell in "abc":
            runs.log(cell, {"step": step, "loss": np.float64(1.0)}, None)
    for cell in "abc":
        runs.finish(cell, "complete", {})
    one_by_one = [f"{c} {event}" for c in "abc" for event in ("opens", "0", "1", "closes")]
    assert sorted(runs.events) == sorted(one_by_one)
    assert (runs.events == one_by_one) == (name == "mlflow")
