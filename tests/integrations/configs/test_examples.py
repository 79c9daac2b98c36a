"""The samples of docs/examples, and the commands of docs/axolotl-finlora.md."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.store import StudyTables

Cli = Callable[..., Any]
Trained = Callable[..., StudyTables]
DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "axolotl-finlora.md").read_text()
ENTRY = "formula_llama_3_1_8b_8bits_r8_rslora"
SAMPLES = {
    "axolotl.yml": [16.0, "rslora", "opposites.json", "bf16"],
    "llama_factory.yaml": [8.0, "lora", "opposites.json", "bf16"],
    "torchtune.yaml": [8.0, "lora", "opposites.json", "bf16"],
    "unsloth.yaml": [64.0, "rslora", "opposites.json", "bf16"],
    "trl.yaml": [8.0, "rslora", "opposites.json", "bf16"],
    "finlora.yaml": [64.0, "rslora", "xbrl_extract", "float32"],
}


@pytest.fixture(autouse=True)
def _samples(_here: None) -> None:
    """The working directory holds the other files that the guide names."""
    Path("sweep.yml").write_text(yaml.safe_dump({"lora_r": [4, 8], "learning_rate": [1e-4, 2e-4]}))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_trains(study_cli: Cli, trained: Trained, name: str) -> None:
    imported = study_cli("import-config", name)
    assert imported.code == 0, imported.err
    # A letter is a token here, so all rows are long. FinLoRA's sample trains on generated rows.
    rows = ["data.path=opposites.json", "data.excess_length_strategy=truncate"]
    own = [] if name == "finlora.yaml" else rows[name == "axolotl.yml" :]
    cells = trained(imported.out, "data.heldout=2", "probes.steps=[0]", *own).cells
    (row,) = cells[["rank", "scaling", "data", "precision", "status"]].values.tolist()
    row[2] = Path(row[2]).name
    assert row == [*SAMPLES[name], "complete"]


@pytest.mark.parametrize("name", [*SAMPLES, "finetune_configs.json"])
def test_pasted_lines_are_the_advised_run_in_the_tools_keys(study_cli: Cli, name: str) -> None:
    """As YAML 1.1 reads them; 1e-05 would be text. FinLoRA's sample has no key of a rate."""
    is_json = name.endswith("json")
    asked = ["advise", name, "--json", *(["--entry", ENTRY] if is_json else [])]
    change = ["--rank=256", "--rule=lora", "--lr=1e-5"]
    found = json.loads(study_cli(*asked, *change).out)
    lines = "\n".join(["{", *found["paste"], "}"] if is_json else found["paste"])
    new, file = yaml.safe_load(lines), yaml.safe_load(Path(name).read_text())
    own = next(iter(file.values())) if is_json else file
    for key, value in new.items():
        own[key] = own[key] | value if isinstance(value, dict) else value
    Path(name).write_text(json.dumps(file))
    again = json.loads(study_cli(*asked).out)["run"]
    rate = found["advice"]["lr"]["value"]
    assert again["lr"] == (None if name == "finlora.yaml" else pytest.approx(rate, rel=0.05))
    assert (again["rank"], again["rule"]) == (256, "lora")
    assert again["alpha"] == pytest.approx(found["advice"]["alpha"])


def test_every_sample_of_a_configuration_is_tested() -> None:
    assert {path.name for path in (DOCS / "examples").glob("*.y*ml")} == set(SAMPLES)


def test_the_commands_of_the_guide(study_cli: Cli) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert len(lines) >= 8
    for line in lines:
        command, *words = shlex.split(line, comments=True)
        assert command == "study"
        ended = study_cli(*words)
        assert ended.code == 0, (line, ended.err)


def test_the_notes_in_the_guide_are_those_of_the_sample(study_cli: Cli) -> None:
    (notes,) = re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL)
    said = study_cli("import-config", "axolotl.yml").err
    assert said.partition("wrote ")[0] == notes
