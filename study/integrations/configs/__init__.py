"""Configurations of other tools as experiments of ``study train``. A file's keys show its form."""

from pathlib import Path
from typing import Any

import yaml

from study.errors import StudyError, short, unknown
from study.integrations.configs import axolotl, tools
from study.integrations.configs.tools import Experiment
from study.reading import read_file as read_bytes
from study.reading import read_object

TOOLS = {
    tool.name: tool
    for tool in (
        *(axolotl.AXOLOTL, axolotl.FINLORA),
        *(tools.LLAMA_FACTORY, tools.TRL, tools.UNSLOTH, tools.TORCHTUNE),
    )
}
READERS = {name: tool.read for name, tool in {**TOOLS, "PEFT": tools.PEFT}.items()}
READERS["FinLoRA's entry"] = axolotl.read_finlora_entry
MOST_BYTES = 1 << 18
"""Of a file."""


def load(path: Path) -> dict[str, Any]:
    fix = "give a YAML or JSON file"
    if path.suffix == ".json":
        return read_object(path, str(path), fix, MOST_BYTES)
    content = read_bytes(path, str(path), fix, MOST_BYTES)
    try:
        values = yaml.safe_load(content.decode("utf-8-sig"))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise StudyError(f"{path} holds no keys: give a configuration")
    return values


def read_file(
    path: Path, entry: str | None = None, base: str | None = None, trains: bool = True
) -> Experiment:
    """The experiment that ``path``, or one ``entry`` of it, describes. ``base`` replaces the base.
    Without ``trains``, settings that ``study train`` lacks are noted and not refused."""
    values, where = _one_entry(load(path), entry, path.name)
    for name, row in tools.ROWS.items():
        if any(key in values for key in row["form"].split()):
            return READERS[name](values, where, path.parent, base, trains)
    raise StudyError(
        f"{where} is none of the known configurations: Axolotl's YAML (base_model, adapter), "
        "LLaMA-Factory's (model_name_or_path, stage), TRL's (use_peft), Unsloth's (training, "
        "lora), torchtune's (checkpointer), FinLoRA's (use_rsLoRA, model_name), an entry of its "
        "finetune_configs.json (base_model, dataset_path), PEFT's adapter_config.json (peft_type)"
    )


def _one_entry(values: dict[str, Any], entry: str | None, name: str) -> tuple[dict[str, Any], str]:
    """The configuration and its name in messages. Several are by name in a file of mappings."""
    is_one = not all(isinstance(value, dict) for value in values.values())
    if not values or is_one or "training" in values:  # Unsloth Studio's has sections
        if entry is not None:
            raise StudyError(f"{name} is one configuration and has no entry: leave out --entry")
        return values, name
    if entry is None and len(values) > 1:
        names = ", ".join(map(str, values))
        raise StudyError(f"{name} has {len(values)} entries: choose one with --entry, from {names}")
    chosen = next(iter(values)) if entry is None else entry
    if chosen not in values:
        raise unknown(f"entry in {name}:", chosen, values)
    return values[chosen], f"{chosen} of {name}"
