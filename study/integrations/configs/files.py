"""From a file to an experiment. The keys tell the form of a file, not its name."""

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
"""Keys and the reader of the form that has them. The first key found decides."""


def read_file(
    path: Path, entry: str | None = None, changed: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment that ``path`` describes.

    ``entry`` names one configuration of a file that holds several. ``changed`` replaces values
    before they are read. Raises :class:`StudyError` for a file that cannot be read, has none of the
    four forms or lacks the entry, and for whatever its reader refuses.
    """
    values, where = _one_entry(load(path), entry, path.name)
    for key, reader in READERS:
        if key in values:
            return reader(Fields({**values, **(changed or {})}, where), path.parent)
    raise StudyError(
        f"{where} is none of the known configurations: FinLoRA's YAML (lora_rank, model_name), an "
        "entry of its finetune_configs.json (base_model, dataset_path), Axolotl's YAML "
        "(base_model, adapter), PEFT's adapter_config.json (peft_type)"
    )


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises :class:`StudyError` for any other file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise StudyError(
            f"cannot read {path} ({error.strerror}): give a YAML or JSON file"
        ) from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text: give a YAML or JSON file") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise StudyError(f"{path} is not valid {kind}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise StudyError(
            f"{path} holds a {type(values).__name__} instead of keys: give a configuration"
        )
    return values


def _one_entry(values: dict[str, Any], entry: str | None, name: str) -> tuple[dict[str, Any], str]:
    """The configuration and its name in messages.

    A file whose values are all mappings holds several configurations by name.
    """
    several = bool(values) and all(isinstance(value, dict) for value in values.values())
    if not several:
        if entry is not None:
            raise StudyError(
                f"{name} is one configuration and has no entry {entry!r}: leave out --entry"
            )
        return values, name
    if entry is None and len(values) > 1:
        raise StudyError(
            f"{name} has {len(values)} entries: choose one with --entry, from {', '.join(values)}"
        )
    chosen = next(iter(values)) if entry is None else entry
    if chosen not in values:
        raise unknown(f"entry in {name}:", chosen, values)
    return values[chosen], f"{chosen} of {name}"
