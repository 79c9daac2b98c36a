"""A cell keeps what its experiment expects, and the report reads it there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import study
from study.config.compose import CONF

Cli = Callable[..., Any]
SMALL = ("model=tiny", "train.steps=2", "seed=0", "probes.steps=[0,1]", "adapter.scaling=lora")


def test_a_cell_keeps_what_its_experiment_expects(
    study_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert study_cli("train", "experiment=quick", *SMALL, "adapter.rank=5").code == 0
    [folder] = (tmp_path / "results/quick/cells").iterdir()
    stated = yaml.safe_load((CONF / "experiment/quick.yaml").read_text())["expects"]
    in_config = yaml.safe_load((folder / "config.yaml").read_text())["expects"]
    in_record = json.loads((folder / "record.json").read_text())["expects"]
    assert in_config == in_record
    pairs = zip(in_record, stated, strict=True)
    assert [{key: one[key] for key in about} for one, about in pairs] == stated
    assert "expects" not in study.load(str(tmp_path / "results/quick")).cells
    assert "## Expected and measured" in _report(study_cli, tmp_path / "results/quick")


def _report(study_cli: Cli, folder: Path) -> str:
    assert study_cli("report", str(folder)).code == 0
    return (folder / "report.md").read_text()
