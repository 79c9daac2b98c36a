"""From a file to an experiment: what form it has is told by its keys, whatever it is called."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from study.errors import StudyError, unknown
from study.integrations.configs import axolotl, finlora_json, finlora_yaml, peft
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields

Reader = Callable[[Fields, Path], Experiment]

READERS: tuple[tuple[str, Reader], ...] = (
    ("peft_type", peft.read),
    ("use_rsLoRA", finlora_yaml.read),
    ("lora_rank", finlora_yaml.read),
    ("model_name", finlora_yaml.read),
    ("dataset_path", finlora_json.read),
    ("base_model", axolotl.read),
    ("adapter", axolotl.read),
)
"""A key that tells a form, first come first served, and its reader."""


def read_file(
    path: Path, entry: str | None = None, changed: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment that ``path`` describes; ``entry`` names one of a file that holds several, ``changed`` replaces
    values of it first.

    Raises :class:`StudyError` for a file that can't be read, has none of the four forms or lacks the entry, and as its
    reader does.
    """
    values, where = _one_entry(load(path), entry, path.name)
    for key, reader in READERS:
        if key in values:
            return reader(Fields({**values, **(changed or {})}, where), path.parent)
    raise StudyError(
        f"{where} has none of the forms that are read, FinLoRA's YAML (lora_rank, model_name), an entry of its "
        "finetune_configs.json (base_model, dataset_path), Axolotl's YAML (base_model, adapter), PEFT's "
        "adapter_config.json (peft_type)"
    )


def load(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping. Raises :class:`StudyError` for anything else."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise StudyError(
            f"{path} can't be read ({error.strerror}): give a YAML or JSON file"
        ) from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text: give a YAML or JSON file") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise StudyError(f"{path} is no {kind}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise StudyError(f"{path} holds {type(values).__name__} and no keys: give a configuration")
    return values


def _one_entry(values: dict[str, Any], entry: str | None, name: str) -> tuple[dict[str, Any], str]:
    """The configuration itself, or the entry asked for where all the values are configurations by name."""
    several = bool(values) and all(isinstance(value, dict) for value in values.values())
    if not several:
        if entry is not None:
            raise StudyError(
                f"{name} is one configuration and has no entry {entry!r}: leave out --entry"
            )
        return values, name
    if entry is None and len(values) > 1:
        raise StudyError(
            f"{name} has {len(values)} entries: choose one with --entry, out of {', '.join(values)}"
        )
    chosen = next(iter(values)) if entry is None else entry
    if chosen not in values:
        raise unknown(f"entry in {name}:", chosen, values)
    return values[chosen], f"{chosen} of {name}"
