"""The samples of docs/examples, and the commands of docs/axolotl-finlora.md."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "axolotl-finlora.md").read_text()
ENTRY = "formula_llama_3_1_8b_8bits_r8_rslora"
SAMPLES = sorted(path.name for path in (DOCS / "examples").glob("*.y*ml"))


@pytest.mark.parametrize("name", [*SAMPLES, "finetune_configs.json"])
def test_pasted_lines_are_the_advised_run_in_the_tools_keys(works, name):
    """As YAML 1.1 reads them; 1e-05 would be text. FinLoRA's sample has no key of a rate."""
    is_json = name.endswith("json")
    asked = ["advise", name, "--json", *(["--entry", ENTRY] if is_json else [])]
    change = ["--rank=256", "--rule=lora", "--lr=1e-5"]
    found = json.loads(works(*asked, *change).out)
    lines = "\n".join(["{", *found["paste"], "}"] if is_json else found["paste"])
    new, file = yaml.safe_load(lines), yaml.safe_load(Path(name).read_text())
    own = next(iter(file.values())) if is_json else file
    for key, value in new.items():
        own[key] = own[key] | value if isinstance(value, dict) else value
    Path(name).write_text(json.dumps(file))
    again = json.loads(works(*asked).out)["run"]
    rate = found["advice"]["lr"]["value"]
    assert again["lr"] == (None if name == "finlora.yaml" else pytest.approx(rate, rel=0.05))
    assert (again["rank"], again["rule"]) == (256, "lora")
    assert again["alpha"] == pytest.approx(found["advice"]["alpha"])


def test_the_commands_of_the_guide(works):
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert set(SAMPLES) <= {line.split()[2] for line in lines}
    for line in lines:
        command, *words = shlex.split(line, comments=True)
        assert command == "study"
        works(*words)


def test_the_notes_in_the_guide_are_those_of_the_sample(works):
    (notes,) = re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL)
    said = works("import-config", "axolotl.yml").err
    assert said.partition("wrote ")[0] == notes
