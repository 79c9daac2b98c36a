"""The artifacts that a sweep publishes to W&B when it ends, and the workspace of the study."""

import json
import re

import pytest

import study
from study.analysis import summary
from study.store import load_cells
from study.tracking.publish import tracker_of
from study.tracking.workspace import workspace
from tests.store.small_cells import CONFIG, RECORD, complete


def test_exponents_and_figures_are_artifacts(tracked, study_dir, inspect):
    cells = set(load_cells(str(study_dir))["cell_id"])
    [path] = [
        run
        for run in (study_dir / "wandb").glob("offline-run-*")
        if run.name.rpartition("-")[2] not in cells
    ]
    records = inspect(path)
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("default", "summary")
    text = [json.dumps(record) for record in records if "artifact" in json.dumps(record)]
    assert any("default-exponents" in line and "exponents.parquet" in line for line in text), text
    # The folder may also hold figures that later tests drew.
    drawn = ("grad_norm_vs_rank.png", "grad_norm_vs_rank.pdf")
    assert all((tracked / "plots/default" / name).exists() for name in drawn)
    assert any("default-figures" in line and all(name in line for name in drawn) for line in text)

    logged = {}
    for record in records:
        if record["type"] == "history":
            item = record["history"]["item"]
            logged |= {(item["_step"], k): v for k, v in item.items() if k.startswith("exponent/")}
    rows = summary(study.load(str(study_dir)).exponents)
    expected = {
        (r.step, f"exponent/{r.optimizer} {r.rule}/{r.quantity}"): r.exponent
        for r in rows.itertuples()
    }
    assert logged == pytest.approx(expected, nan_ok=True)
    assert (0, "exponent/adamw lora/adapter_grad norm") in logged
    [table] = path.glob("files/media/table/exponents_*.json")
    sent = json.loads(table.read_text())
    places = [sent["columns"].index(name) for name in ("rule", "quantity", "step", "estimate")]
    assert [[row[place] for place in places] for row in sent["data"]] == [
        [row.rule, row.quantity, row.step, row.estimate] for row in rows.itertuples()
    ]


def test_the_workspace_has_a_section_per_site_and_a_panel_per_kind(study_dir):
    tracker = tracker_of(study_dir)
    spec = workspace(study_dir, tracker)._spec["spec"]["section"]
    sections = {part["name"]: part["panels"] for part in spec["panelBankConfig"]["sections"]}
    sites = ["adapter_grad", "adapter_out", "adapter_in_grad", "delta_w"]
    assert list(sections) == ["training", "against rank", *sites], "the gradient first"
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for site, prefix in (("adapter_grad", "grad_norm"), ("delta_w", "delta_w_norm")):
        regexes = [panel["config"]["metricRegex"] for panel in sections[site]]
        assert len(regexes) == 7
        for kind in kinds:
            matching = [regex for regex in regexes if re.search(regex, f"{prefix}/block_01/{kind}")]
            assert len(matching) == 1, kind
    [runs] = spec["runSets"]
    grouped = [key["name"] for key in runs["grouping"]]
    assert grouped == ["adapter.value.scaling", "adapter.value.rank"]
    filters = {
        part["key"]["name"]: (part["op"], part["value"]) for part in runs["filters"]["filters"]
    }
    assert filters == {"group": ("=", "default"), "jobType": ("!=", "summary")}
    colours = list(spec["customRunColors"].values())
    assert len(set(colours)) == 4, "a shade for each rank of each rule"


def test_files_go_to_the_study_and_not_where_a_record_says(tmp_path):
    """A results folder may be somebody else's."""
    settings = {"name": "wandb", "project": "mine", "dir": "/home/somebody/.ssh", "other": 1}
    complete(tmp_path, "abc", RECORD | {"config": CONFIG | {"tracker": settings}})
    found = tracker_of(tmp_path)
    assert (found.project, found.mode, found.dir) == ("mine", "offline", str(tmp_path))
