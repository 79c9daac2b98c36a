"""An imported experiment, and the files that ``study train`` reads it from.

    conf/experiment/NAME.yaml   conf/model/NAME.yaml   conf/data/NAME.yaml

Base and data have files of their own, so that ``model=tiny`` or ``data=pydoc`` on the command line
replaces all of their settings.
"""

import json
import shlex
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from study.config.compose import CONF, compose
from study.config.hints import as_study_errors
from study.config.values import check_folder_name, literal
from study.errors import StudyError, printable
from study.integrations import overrides
from study.integrations.configs.fields import Fields
from study.store import write_text

OWN_GROUPS = ("model", "data")
"""Groups that get a file of their own. Values of other groups are in the experiment's file."""
MOST_SWEPT = 1000
"""Values of all swept keys. Each is composed and checked."""


WIDTH = 98


def _because(reason: str, keys: str) -> dict[str, str]:
    """``reason`` for each of the space-separated ``keys``."""
    return dict.fromkeys(keys.split(), reason)


CHANGES: dict[str, str] = {
    **_because("plain LoRA is trained", "use_dora use_mora relora"),
    **_because(
        "only adapters are trained",
        "lora_modules_to_save additional_target unfrozen_parameters peft_trainable_token_indices",
    ),
    **_because(
        "adapters start from their init",
        "lora_model_dir adapter_name_or_path resume_from_checkpoint",
    ),
    **_because("one rank for all layers", "lora_rank_pattern"),
    **_because("one alpha for all layers", "lora_alpha_pattern"),
    **_because("all layers", "peft_layers_to_transform peft_layers_pattern"),
    **_because("the base keeps its layers", "peft_layer_replication"),
    **_because(
        "one example per row, so steps hold fewer tokens", "sample_packing packing neat_packing"
    ),
    **_because("the loss is on targets only", "train_on_inputs train_on_prompt"),
    **_because("the loss is on the completion", "completion_only_loss"),
    **_because("the loss is on all turns of the assistant", "mask_history roles_to_train"),
    **_because("the loss includes the end of each of the assistant's turns", "train_on_eos"),
    **_because(
        "the mean cross entropy of the targets is trained",
        "label_smoothing_factor kd_trainer diffusion use_dft_loss use_eaft use_eaft_loss",
    ),
    **_because("no noise is added", "neftune_noise_alpha noisy_embedding_alpha"),
    **_because(
        "rows are shuffled",
        "group_by_length curriculum_sampling disable_shuffling shuffle_merged_datasets",
    ),
    **_because("only the first data set is trained on", "pretraining_dataset mix_strategy"),
    **_because("all rows are read", "num_samples shards skip streaming"),
    **_because("longer rows are cut", "excess_length_strategy"),
    **_because("the last batch is completed with rows of the next epoch", "dataloader_drop_last"),
    **_because("the batch is not adapted to the memory", "auto_find_batch_size"),
    **_because("the newest revision is read", "revision revision_of_model model_revision"),
    **_because("a system message is read from the field system", "field_system system"),
    **_because("the template has its own system message", "default_system default_system_message"),
    **_because("the tokenizer's own chat template is used", "chat_template chat_template_path"),
    **_because(
        "the base's own tokenizer is used", "tokenizer_config tokens add_tokens eos_token pad_token"
    ),
    **_because(
        "the base is loaded as transformers loads it",
        "rope_scaling overrides_of_model_config quantize_moe_experts",
    ),
    **_because(
        "model.quant_bits quantises the base's block linears with bitsandbytes",
        "gptq bnb_config_kwargs quantization_method quantization_type double_quantization",
    ),
    **_because("precision=float32 computes in float32", "fp16 float16 fp8"),
    **_because("adapter weights are float32", "pure_bf16 bfloat16"),
    **_because("the learning rate is one for A and one for B", "loraplus_lr_embedding"),
    **_because(
        "the schedule of transformers is used, from learning_rate to 0",
        "lr_scheduler_kwargs cosine_min_lr_ratio cosine_constant_lr_ratio",
    ),
    **_because(
        "the optimizer has the options of its file in conf/optimizer",
        "optim_args optim_target_modules use_galore use_apollo use_badam use_muon",
    ),
    **_because("training goes on to the last step", "early_stopping_patience early_stopping_steps"),
    **_because("the weights of the last step are kept", "load_best_model_at_end"),
    **_because(
        "one device: with n GPUs, a step has n times as many rows there",
        "deepspeed fsdp fsdp_config",
    ),
}
"""Keys of any tool that change what a run means and have no counterpart: what is trained instead.

Every other key that no reader takes is ignored, and named in one line.
"""
UNCHANGED: dict[str, Any] = {
    "field_system": "system",
    "roles_to_train": ["assistant"],
    "train_on_eos": "turn",
    "mix_strategy": "concat",
    "quantization_method": "bnb",
    "quantization_type": "nf4",
    "double_quantization": True,
    **dict.fromkeys(("revision", "revision_of_model", "model_revision"), "main"),
}
"""The values of such keys that change nothing, beside empty ones."""
EMPTY: tuple[Any, ...] = (False, "", [], {})


@dataclass
class Notes:
    """Three lists, the most important first.

    - ``differs``: a line for each setting of the file that is trained differently here;
    - ``defaults``: a line for each value that the file does not set;
    - ``ignored``: the keys that nothing reads.
    """

    differs: list[str] = field(
        default_factory=list, metadata={"heading": "Trained differently from the file:"}
    )
    defaults: list[str] = field(
        default_factory=list, metadata={"heading": "Not in the file, set by default:"}
    )
    ignored: list[str] = field(default_factory=list, metadata={"heading": "Ignored:"})

    def lines(self) -> Iterator[str]:
        """The groups that are not empty, each under its heading. Ignored keys share lines."""
        for group in fields(self):
            notes = list(map(printable, getattr(self, group.name)))
            if notes:
                yield group.metadata["heading"]
            if group.name == "ignored":
                notes = textwrap.wrap(", ".join(notes), WIDTH, break_on_hyphens=False)
            yield from (f"  {note}" for note in notes)


def note_rest(keys: Fields, notes: Notes, prefix: str = "") -> None:
    """Note every key that no reader took."""
    for key, value in keys.untaken().items():
        plain = (*EMPTY, UNCHANGED.get(key))
        if key not in CHANGES or any(type(value) is type(p) and value == p for p in plain):
            notes.ignored.append(f"{prefix}{shown(key)}")
        else:
            notes.differs.append(f"{prefix}{shown(key)}: {shown(value)} ({CHANGES[key]})")


def shown(value: Any) -> str:
    """A value on one line, at most 100 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass
class Experiment:
    """A configuration of another tool, translated.

    - ``origin``: the file that it was made from;
    - ``groups``: the option of each group; ``values``: settings by dotted key;
    - ``notes``: what is trained differently, what was assumed, and what was left out;
    - ``sweep``: lists of values by dotted key or group. All combinations are trained.
    """

    origin: str
    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    sweep: dict[str, list[Any]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Groups and values in one mapping."""
        return {**self.groups, **self.values}


@dataclass(frozen=True)
class Written:
    """The files of an experiment, and the command that trains it."""

    paths: list[Path]
    command: str


def write(experiment: Experiment, name: str, folder: Path, *, force: bool = False) -> Written:
    """Write ``folder/experiment/name.yaml``, and the files of its base and data.

    The experiment is first composed and checked, as ``study train`` does it. Raises
    :class:`StudyError` for a value that ``study train`` refuses, a name that is in use and a folder
    that cannot be written; then nothing is written.
    """
    check_folder_name(name, "--name")
    swept = sum(map(len, experiment.sweep.values()))
    if swept > MOST_SWEPT:
        raise StudyError(f"the sweep has {swept} values: give at most {MOST_SWEPT}")
    is_own = folder.resolve() == CONF.resolve()
    words = [] if is_own else [f"--config-dir={folder.as_posix()}"]
    command = shlex.join(["study", "train", *words, f"experiment={overrides.written(name)}"])
    texts = {folder / path: text for path, text in _files(experiment, name, command).items()}
    for path in texts:
        group = path.parent.name
        if not is_own and (CONF / group / path.name).exists():
            raise StudyError(f"{group}={name} is one of the toolkit's own: give another --name")
        if path.exists() and not force:
            raise StudyError(
                f"{path} already exists: give another --name, or --force to overwrite it"
            )
    _check(experiment, name, command)
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    except OSError as error:
        raise StudyError(f"cannot write {path} ({error.strerror}): give another --to") from None
    return Written(list(texts), command)


def _files(experiment: Experiment, name: str, command: str) -> dict[str, str]:
    """The text of every file, by its path in the configuration folder; the experiment is first."""
    options = {group: _under(group, experiment.values) for group in OWN_GROUPS}
    files = {f"experiment/{name}.yaml": _experiment_text(experiment, name, command, options)}
    for group, values in options.items():
        if values:
            head = f"# {printable(experiment.origin)}\n"
            body = {"defaults": [experiment.groups[group], "_self_"], **values}
            files[f"{group}/{name}.yaml"] = head + _yaml(body)
    return files


def _experiment_text(
    experiment: Experiment, name: str, command: str, options: Mapping[str, Any]
) -> str:
    lines = ["@package _global_", experiment.origin, command, *experiment.notes.lines()]
    chosen = {
        group: name if options.get(group) else option for group, option in experiment.groups.items()
    }
    body: dict[str, Any] = {
        "defaults": [{f"override /{group}": option} for group, option in chosen.items()]
    }
    body["name"] = name
    for key, value in experiment.values.items():
        group, dot, rest = key.partition(".")
        if dot and group not in OWN_GROUPS:
            body.setdefault(group, {})[rest] = value
        elif not dot:
            body[key] = value
    if experiment.sweep:
        params = {
            key: ",".join(map(overrides.written, values))
            for key, values in experiment.sweep.items()
        }
        body["hydra"] = {"mode": "MULTIRUN", "sweeper": {"params": params}}
    comments = "".join(f"# {printable(line)}\n" for line in lines)
    return comments + _yaml(body)


def _under(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{group}.")
    }


def _check(experiment: Experiment, name: str, command: str) -> None:
    """Compose and check the experiment alone, and with each swept value."""
    swept = [
        f"{key}={overrides.written(value)}"
        for key, values in experiment.sweep.items()
        for value in values
    ]
    GlobalHydra.instance().clear()
    with (
        tempfile.TemporaryDirectory() as place,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        for path, text in _files(experiment, name, command).items():
            file = Path(place, path)
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        shared = [f"hydra.searchpath=[file://{place}]", f"experiment={overrides.written(name)}"]
        if experiment.groups.get("data") == "file" and "data.path" not in experiment.values:
            shared.append("data.path=given_when_you_train.jsonl")
        loader = GlobalHydra.instance().config_loader()
        try:
            with as_study_errors():
                compose(loader, "config", shared, [[], *([override] for override in swept)])
        except StudyError as error:
            raise StudyError(f"{experiment.origin}: {error}") from None


def _yaml(body: Mapping[str, Any]) -> str:
    """``body`` in OmegaConf's YAML, which reads some texts as numbers that other YAML does not."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(dict(body))))
