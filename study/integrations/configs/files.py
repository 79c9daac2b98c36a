"""From a file to an experiment: its keys tell its form, not its name. And Axolotl's sweep files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from study.errors import StudyError, given, short, unknown
from study.integrations.configs import axolotl, finlora, llama_factory, peft, trl
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields, load

Reader = Callable[[Fields, Path], Experiment]

LLAMA_FACTORY = [
    "stage",
    "finetuning_type",
    "cutoff_len",
    "lora_target",
    "export_dir",
    "peft_config",
]
TRL = ["use_peft", "dataset_mixer", "dataset_mixture", "dataset_name", "max_seq_length"]
READERS: tuple[tuple[str, Reader], ...] = (
    ("peft_type", peft.read),
    *((key, llama_factory.read) for key in LLAMA_FACTORY),
    *((key, trl.read) for key in TRL),
    ("model_name_or_path", llama_factory.read),
    ("use_rsLoRA", finlora.read_yaml),
    ("lora_rank", finlora.read_yaml),
    ("model_name", finlora.read_yaml),
    ("dataset_path", finlora.read_entry),
    ("base_model", axolotl.read),
    ("adapter", axolotl.read),
)
"""Keys and the reader of the form that has them. The first key found decides."""
BASE: dict[Reader, str] = {
    peft.read: "base_model_name_or_path",
    llama_factory.read: "model_name_or_path",
    trl.read: "model_name_or_path",
    finlora.read_yaml: "model_name",
    finlora.read_entry: "base_model",
    axolotl.read: "base_model",
}
"""The key of the base in each form."""
MOST_VALUES = 100
"""Of one key. The configuration is read again with each."""


def read_file(
    path: Path,
    entry: str | None = None,
    changed: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> Experiment:
    """The experiment that ``path`` describes.

    ``entry`` names one configuration of a file that holds several. ``changed`` replaces values
    before they are read; ``base`` replaces the base. Raises :class:`StudyError` for a file that
    cannot be read, has none of the known forms or lacks the entry, and for whatever its reader
    refuses.
    """
    values, where = _one_entry(load(path), entry, path.name)
    for key, reader in READERS:
        if key in values:
            named = {BASE[reader]: base} if base else {}
            return reader(Fields({**values, **(changed or {}), **named}, where), path.parent)
    raise StudyError(
        f"{where} is none of the known configurations: Axolotl's YAML (base_model, adapter), "
        "LLaMA-Factory's (model_name_or_path, stage), TRL's (use_peft), FinLoRA's (lora_rank, "
        "model_name), an entry of its finetune_configs.json (base_model, dataset_path), PEFT's "
        "adapter_config.json (peft_type)"
    )


def _one_entry(values: dict[str, Any], entry: str | None, name: str) -> tuple[dict[str, Any], str]:
    """The configuration and its name in messages.

    A file whose values are all mappings holds several configurations by name.
    """
    several = bool(values) and all(isinstance(value, dict) for value in values.values())
    if not several:
        if entry is not None:
            raise StudyError(
                f"{name} is one configuration and has no entry {short(entry)}: leave out --entry"
            )
        return values, name
    if entry is None and len(values) > 1:
        names = ", ".join(map(str, values))
        raise StudyError(f"{name} has {len(values)} entries: choose one with --entry, from {names}")
    chosen = next(iter(values)) if entry is None else entry
    if chosen not in values:
        raise unknown(f"entry in {name}:", chosen, values)
    return values[chosen], f"{chosen} of {name}"


def from_sweep_file(
    sweep: Path, config: Path, entry: str | None = None, base: str | None = None
) -> dict[str, list[Any]]:
    """The values to sweep, by our keys, from a sweep file of Axolotl: a list for each key.

    Each value is put into ``config``, which is then read as usual. Raises :class:`StudyError` for a
    value that is not a list, for a key that changes none or several of our keys, and for ``_``:
    its pairs of values are not a product of lists.
    """
    lists = load(sweep)
    if "_" in lists:
        raise StudyError(
            f"{sweep.name}: '_' pairs values, but a Hydra sweep is a product of lists: "
            "write two sweeps"
        )
    found: dict[str, list[Any]] = {}
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise StudyError(
                f"{sweep.name}: {given(key)}={short(values)} is not a list of values: "
                "write key: [...]"
            )
        if len(values) > MOST_VALUES:
            raise StudyError(
                f"{sweep.name}: {given(key)} has {len(values)} values: give at most {MOST_VALUES}"
            )
        experiments = [read_file(config, entry, {key: value}, base) for value in values]
        changed = _changed([read_file(config, entry, base=base), *experiments])
        if len(changed) != 1:
            what = (
                f"changes {' and '.join(changed)} together"
                if changed
                else "changes nothing that is trained here"
            )
            raise StudyError(
                f"{sweep.name}: {given(key)} {what}: leave it out and sweep on the command line"
            )
        found[changed[0]] = [experiment.settings().get(changed[0]) for experiment in experiments]
    return found


def _changed(experiments: list[Experiment]) -> list[str]:
    """The keys with different values."""
    settings = [experiment.settings() for experiment in experiments]
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
