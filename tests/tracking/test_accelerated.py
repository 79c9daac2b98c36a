"""``tracker=tensorboard``, ``tracker=trackio`` ...: they hold what the store holds."""

import contextlib
import sqlite3

import pytest
import yaml

from study.config.compose import CONF
from study.store import load_measured
from study.tracking.runs import ARGUMENTS
from study.vocabulary.extras import NONE, TRACKERS, WANDB
from study.vocabulary.quantities import MODEL_WIDE

SWEEP = ["-m", "adapter.rank=2", "adapter.scaling=rslora,0.75", "optimizer.lr=1e-3", "pack.fold=2"]


PRINT_WANDB = """
import atexit, sys
atexit.register(lambda: [print(name) for name in list(sys.modules) if name.startswith("wandb")])
"""


def test_a_tracker_prints_nothing_and_holds_what_the_store_holds(tmp_path, study_process):
    """W&B is not imported without its tracker."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    ran = study_process(tmp_path, "train", *SWEEP, "tracker=tensorboard", first=PRINT_WANDB)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert "tracking stopped" not in ran.stderr
    tables, runs = load_measured(str(tmp_path / "results/default")), {}
    for folder in (tmp_path / "results/default/tensorboard").iterdir():
        events = reader.EventAccumulator(str(folder)).Reload()
        runs[folder.name] = {
            tag: {event.step: event.value for event in events.Scalars(tag)}
            for tag in events.Tags()["scalars"]
        }
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


def test_the_first_broken_cell_sends_one_alert(tmp_path, study_process):
    pytest.importorskip("trackio")
    where = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    sweep = ("adapter.rank=2,4", "optimizer.lr=1e30", "tracker=trackio", "tracker.alerts=true")
    ran = study_process(tmp_path, "train", "-m", *sweep, "train.steps=4", **where)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert "tracking stopped" not in ran.stderr
    [file] = (tmp_path / "trackio").glob("default*.db")
    with contextlib.closing(sqlite3.connect(file)) as base:
        [[title, text]] = base.execute("SELECT title, text FROM alerts").fetchall()
    assert title == "default: diverged"
    assert text.endswith("learning rate 1e+30")


def test_the_trackers_are_accelerates():
    tracking = pytest.importorskip("accelerate.tracking")
    assert set(TRACKERS) == set(tracking.LOGGER_TYPE_TO_CLASS)
    assert set(ARGUMENTS) == set(TRACKERS) - {WANDB}
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("tracker/*.yaml")}
    assert set(files) == {NONE, *TRACKERS}
    assert all(content["name"] == name for name, content in files.items())
