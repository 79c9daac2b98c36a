"""Records that somebody changed: their cells are left out with a line, or have no prediction."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strange")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.sequence_length", "long"),
        ("optimizer.eps", "small"),
        ("optimizer.weight_decay", "none"),
        ("train.batch_size", "two"),
        ("train.accumulation", "x"),
        ("adapter.init", "unknown"),
    ],
)
def test_a_record_with_a_strange_value_gets_a_line(
    study_cli: Cli, swept: Path, key: str, value: str
) -> None:
    if not (swept / "s").exists():
        trained = study_cli(
            *("train", "-m", "model=tiny", "name=s", f"results_dir={swept}", "train.steps=1"),
            *("adapter.rank=2,4", "seed=0,1", "train.batch_size=2", "data.sequence_length=16"),
            *("probes.sites=[adapter_grad]", f"plots_dir={swept}", "train.eval_every=0"),
        )
        assert trained.code == 0, trained.err
    record = next((swept / "s/cells").iterdir()) / "record.json"
    text = record.read_text()
    changed = json.loads(text)
    group, name = key.split(".")
    changed["config"][group][name] = value
    record.write_text(json.dumps(changed))
    try:
        ran = study_cli("analyze", str(swept / "s"))
    finally:
        record.write_text(text)
    assert ran.code == 0
    assert "Traceback" not in ran.err
