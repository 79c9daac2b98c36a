"""Records that somebody changed: their cells are left out with a line, or have no prediction."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]


KEYS = {
    "data.sequence_length": "long",
    "optimizer.eps": "small",
    "train.batch_size": "two",
    "adapter.init": "unknown",
}


def test_a_record_with_a_strange_value_gets_a_line(study_cli: Cli, tmp_path: Path) -> None:
    trained = study_cli(
        *("train", "-m", "model=tiny", "name=s", f"results_dir={tmp_path}", "train.steps=1"),
        *("adapter.rank=2,4", "seed=0,1", "train.batch_size=2", "data.sequence_length=16"),
        *("probes.sites=[adapter_grad]", f"plots_dir={tmp_path}", "train.eval_every=0"),
    )
    assert trained.code == 0, trained.err
    record = next((tmp_path / "s/cells").iterdir()) / "record.json"
    text = record.read_text()
    for key, value in KEYS.items():
        changed = json.loads(text)
        group, name = key.split(".")
        changed["config"][group][name] = value
        record.write_text(json.dumps(changed))
        ran = study_cli("analyze", str(tmp_path / "s"))
        assert ran.code == 0, key
        assert "Traceback" not in ran.err
