"""Notes of an import: sorted, and no key is lost in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.errors import StudyError
from study.integrations.configs import read_file

Cli = Callable[..., Any]
Edit = Callable[..., None]
SHARED = Path(__file__).parents[4] / "shared/data/configs"
REAL = sorted(path for path in SHARED.rglob("*") if path.suffix in (".yml", ".yaml"))
HEADINGS = [
    "Trained differently from the file:",
    "Different in detail:",
    "Not in the file, set by default:",
    "Ignored:",
]


def test_what_changes_training_comes_first(study_cli: Cli, edit: Edit) -> None:
    edit("axolotl.yml", peft_use_dora=True, max_grad_norm=None)
    imported = study_cli("import-config", "axolotl.yml")
    notes, _, _ = imported.err.partition("wrote ")
    where = [notes.index(heading) for heading in HEADINGS]
    assert where == sorted(where)
    assert where[0] == 0
    assert notes.index("  peft_use_dora: true (plain LoRA is trained)\n") < where[1]
    assert where[2] < notes.index("max_grad_norm 1.0") < where[3]
    assert notes.endswith("Ignored:\n  datasets[0].ds_type, flash_attention, output_dir\n")
    text = Path("conf/experiment/axolotl.yaml").read_text()
    assert "".join(f"# {line}\n" for line in notes.splitlines()) in text


NAMES = ("axolotl.yml", "factory.yaml", "rslora.yaml")


@pytest.mark.parametrize(
    "path", [*map(Path, NAMES), *REAL], ids=lambda path: f"{path.parent.name}-{path.name}"[:40]
)
def test_no_key_is_lost_in_silence(path: Path) -> None:
    """A changed value changes what is trained or noted, or the key is ignored by name."""
    try:
        before = read_file(path)
    except StudyError:
        return  # nothing is imported
    for key in yaml.safe_load(path.read_text()):
        try:
            after = read_file(path, changed={key: "changed"})
        except StudyError:
            continue  # the value was looked at
        was, now = (
            (read.settings(), read.differs, read.details, read.missing) for read in (before, after)
        )
        assert now != was or any(key in note for note in after.ignored), key


REFUSED = {
    "ebft__llama-1b-ebft-opencode-novllm.yaml": "rl trains on preferences",
    "export_lora.yaml": "model_name_or_path is missing",
    "qwen3_lora_sft.yaml": "dataset is missing, so it trains nothing",
    "qwen3vl_lora_dpo.yaml": "stage: dpo trains on no targets",
}
"""The real files that can't be imported, and why."""


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name[:40])
def test_real_configurations_keep_their_data_epochs_and_warmup(path: Path) -> None:
    Path("data/dataset_info.json").unlink()
    if path.name in REFUSED:
        with pytest.raises(StudyError, match=REFUSED[path.name]):
            read_file(path)
        return
    experiment = read_file(path)
    of_axolotl = path.parent.name == "axolotl"
    assert experiment.origin.startswith("Axolotl's" if of_axolotl else "LLaMA-Factory's")
    values = experiment.values
    assert values["train.epochs"] >= 1
    assert values["train.warmup"] == 0.1
    assert ("data.path" in values) == of_axolotl  # no dataset_info.json is beside the others
    assert values.get("data.format") in (("alpaca", "messages") if of_axolotl else (None,))
