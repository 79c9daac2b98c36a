"""W&B has the values of the store, and no error in W&B stops training."""

import math

import pytest

import study
from study.store import load_cells, load_measured, load_records
from study.tracking.runs import run_id
from tests.tracking.conftest import SECRET

SITES = {"adapter_grad": "grad_norm", "adapter_out": "adapter_out_norm", "delta_w": "delta_w_norm"}


def test_every_cell_is_a_run_with_its_record_and_the_values_of_the_store(study_dir, inspect):
    """W&B's reader is slow: two of the four runs are read."""
    tables, folders = load_measured(str(study_dir)), (study_dir / "wandb").glob("offline-run-*")
    runs = {path.name.rpartition("-")[2]: path for path in folders}
    assert set(tables.cells["cell_id"]) <= set(runs)
    compared, types = 0, set()
    for record in load_records(study_dir):
        cell_id = record["cell_id"]
        rule, rank = (record["config"]["adapter"][key] for key in ("scaling", "rank"))
        if (rule, rank) not in (("lora", 2), ("rslora", 4)):
            continue
        records = inspect(runs[cell_id])
        logged = (record["history"]["item"] for record in records if record["type"] == "history")
        rows = {item["_step"]: item for item in logged}
        metrics = tables.metrics[tables.metrics["cell_id"] == cell_id].drop(columns="cell_id")
        assert sorted(rows) == list(metrics["step"])
        for stored in metrics.to_dict("records"):
            row = rows[stored.pop("step")]
            for name, value in stored.items():
                assert (name in row) == (not math.isnan(value)), name
                assert row.get(name, value) == pytest.approx(value, rel=1e-12, nan_ok=True)
                compared += name in row
        probes = tables.probes[tables.probes["cell_id"] == cell_id]
        for probe in probes[probes["site"].isin(SITES)].itertuples():
            block = f"block_{probe.block:02d}/" if probe.block >= 0 else ""
            layer = f"{block}{probe.kind}"
            assert rows[probe.step][f"{SITES[probe.site]}/{layer}"] == probe.norm
            compared += 1
        run = next(r["run"] for r in records if r["type"] == "run")
        assert run["run_id"] == run_id("default", cell_id)
        assert (run["run_group"], run["project"]) == ("default", "study")
        assert run["tags"] == [rule, f"rank {rank}", "adamw", "tiny"]
        assert run["display_name"] == f"adamw {rule} rank {rank} seed 0 lr 0.0001 alpha 16.0"
        types.add(run["job_type"])
        sent, known = run["config"]["update"], record | record["config"]
        keys = {"cell_id", "gamma", "sources"} | record["config"].keys()
        assert {key: sent[key] for key in keys} == {key: known[key] for key in keys}
        assert [r["exit"].get("exit_code", 0) for r in records if r["type"] == "exit"] == [0]
    assert compared > 2 * 3 * 3 * 14
    assert types == {"lora", "rslora"}


def test_no_key_is_in_anything_that_is_written(tracked):
    files = [path for path in tracked.rglob("*") if path.is_file()]
    assert {"record.json", "config.yaml"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_key_in_the_configuration_is_refused_and_not_printed(cell):
    with pytest.raises(study.errors.StudyError) as error:
        cell("tracker=wandb", f"+tracker.api_key={SECRET}")
    assert "tracker.api_key" in str(error.value)
    assert SECRET not in str(error.value)


def test_an_error_in_wandb_is_one_line_and_stops_nothing(tmp_path, study_process):
    """There is no network."""
    where = {"WANDB_API_KEY": SECRET, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    where |= {"HOME": "/nonexistent"}
    sweep = ["-m", "adapter.rank=2,3", "tracker=wandb", "tracker.mode=online"]
    impatient = "from study.tracking import runs; runs.PATIENCE = 2.0"
    done = study_process(tmp_path, "train", *sweep, first=impatient, **where)
    assert done.returncode == 0, done.stderr
    cells = load_cells(str(tmp_path / "results/default"))
    assert list(cells["status"]) == ["complete"] * 2
    assert done.stderr.count("W&B tracking stopped") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
