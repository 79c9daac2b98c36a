"""``study advise`` on configurations as the examples of each tool look, apart from the samples in
``docs/examples``. They are in ``tests/cli/configurations``."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parent / "configurations"
FILES = sorted(path.name for path in FOLDER.iterdir())
HEADS = {"Warning", "Alpha", "Note", "Cost", "Gain", "Sure?", "Test"}


@pytest.fixture
def ask(works):
    """The answer as JSON, and its lines for people."""

    def run(file, *options):
        text = works("advise", file, *options).out
        return json.loads(works("advise", file, *options, "--json").out), text.splitlines()

    return run


def merged(values, changes):
    """``values`` with the keys of ``changes``, also in sections."""
    parts = {
        key: merged(values.get(key, {}), part) if isinstance(part, dict) else part
        for key, part in changes.items()
    }
    return values | parts


def with_answer(file, paste):
    """The text of a configuration after the lines were pasted into it."""
    values = yaml.safe_load(file.read_text())
    if file.suffix == ".json":  # a call of LoraConfig, and the rate of an optimizer
        from peft import LoraConfig

        config = eval(paste[0], {"LoraConfig": LoraConfig})
        own = {name: getattr(config, name) for name in ("r", "lora_alpha", "use_rslora")}
        return json.dumps(values | own)
    return yaml.safe_dump(merged(values, yaml.safe_load("\n".join(paste))))


def test_there_are_at_least_15():
    assert len(FILES) >= 15


@pytest.mark.parametrize("name", FILES)
def test_the_answer_is_short_and_can_be_pasted(ask, tmp_path, name):
    """The file with the pasted lines is the advised run. A new rate gets no warning there."""
    said, lines = ask(FOLDER / name, "--rank", "64")
    assert len(lines) <= 14
    about = lines.index(said["words"])
    assert {line.split()[0] for line in lines if not line.startswith(" ")} - HEADS == {
        lines[about].split()[0]
    }
    assert not {"docs/", "STEPS"} & {*" ".join(lines).split()}
    file = tmp_path / name
    file.write_text(with_answer(FOLDER / name, said["paste"]))
    advice = said["advice"]
    rate = advice["lr"]["value"]
    given = ["--lr", f"{rate:g}"] if file.suffix == ".json" else []
    again, _ = ask(file, *given)
    if rate != said["run"]["lr"]:
        assert again["warning"] == []
    for key in ("rank", "alpha", "rule", "optimizer", "ratio", "steps", "epochs"):
        assert again["run"][key] == advice[key], key
    assert again["run"]["lr"] == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_the_command_of_the_last_line_writes_the_check(ask, works, here, name):
    said, lines = ask(FOLDER / name, "--rank", "64")
    assert (said["check"] is not None) == lines[-1].startswith("Test")
    if said["check"]:
        _, *words = shlex.split(said["check"]["ask"])
        works(*words)
        assert "study train" in (here / "check.sh").read_text()
    else:
        assert "The numbers do not cover" in "\n".join(lines)


@pytest.mark.parametrize("name", ["axolotl_dpo.yaml", "lf_kto.yaml"])
def test_preference_training_keeps_its_rate(ask, name):
    """Its usual rates are a hundredth of those that the law was fitted to."""
    said, _ = ask(FOLDER / name, "--rank", "64")
    assert said["warning"] == []
    assert said["advice"]["lr"]["value"] == said["run"]["lr"] == 5e-6
