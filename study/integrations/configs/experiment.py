"""An imported experiment: settings of ``study train``, and notes on what has no counterpart."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from study.errors import printable

_CHANGES = {
    "plain LoRA is trained": "use_dora peft_use_dora use_mora relora",
    "only adapters are trained": "lora_modules_to_save additional_target unfrozen_parameters "
    "peft_trainable_token_indices",
    "adapters start from their init": "lora_model_dir adapter_name_or_path resume_from_checkpoint",
    "one rank for all layers": "lora_rank_pattern",
    "one alpha for all layers": "lora_alpha_pattern",
    "all layers": "peft_layers_to_transform peft_layers_pattern",
    "the base keeps its layers": "peft_layer_replication",
    "the loss is on targets only": "train_on_inputs train_on_prompt",
    "the loss is on the completion": "completion_only_loss",
    "the loss is on all turns of the assistant": "mask_history roles_to_train",
    "the loss includes the end of each of the assistant's turns": "train_on_eos",
    "the mean cross entropy of the targets is trained": "label_smoothing_factor kd_trainer "
    "diffusion use_dft_loss use_eaft use_eaft_loss",
    "no noise is added": "neftune_noise_alpha noisy_embedding_alpha",
    "rows are shuffled": "group_by_length curriculum_sampling disable_shuffling "
    "shuffle_merged_datasets",
    "the data sets are joined": "pretraining_dataset mix_strategy",
    "all rows are read": "num_samples shards skip streaming",
    "the last batch is completed with rows of the next epoch": "dataloader_drop_last",
    "the batch is not adapted to the memory": "auto_find_batch_size",
    "the newest revision is read": "revision revision_of_model model_revision",
    "roles have their usual names": "roles",
    "a system message is read from the field system": "field_system system",
    "the template has its own system message": "default_system default_system_message",
    "the tokenizer's own chat template is used": "chat_template chat_template_path",
    "the base's own tokenizer is used": "special_tokens tokenizer_config tokens add_tokens "
    "eos_token",
    "the base is loaded as transformers loads it": "rope_scaling overrides_of_model_config "
    "quantize_moe_experts",
    "model.quant_bits quantises the base's block linears with bitsandbytes": "gptq "
    "bnb_config_kwargs quantization_method quantization_type double_quantization",
    "precision=float32 computes in float32": "fp16 float16 fp8",
    "adapter weights are float32": "pure_bf16 bfloat16",
    "the learning rate is one for A and one for B": "loraplus_lr_embedding",
    "the schedule of transformers is used, from learning_rate to 0": "lr_scheduler_kwargs "
    "cosine_min_lr_ratio cosine_constant_lr_ratio",
    "the optimizer has the options of its file in conf/optimizer": "optim_args "
    "optim_target_modules use_galore use_apollo use_badam use_muon",
    "training goes on to the last step": "early_stopping_patience early_stopping_steps",
    "the weights of the last step are kept": "load_best_model_at_end",
    "one device: with n GPUs, a step has n times as many rows there": "deepspeed fsdp fsdp_config",
}
CHANGES = {key: instead for instead, keys in _CHANGES.items() for key in keys.split()}
"""Keys of any tool that change a run and have no counterpart, and the replacement.

Every other key that no reader takes is ignored, and named in one line.
"""
DETAILS = ("deepspeed", "fsdp", "fsdp_config", "special_tokens", "roles")
"""Such keys that change little, or in some cases only."""
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
"""The values of such keys that change nothing, apart from empty ones."""


@dataclass
class Experiment:
    """A configuration of another tool, translated.

    - ``origin``: the file that it was made from;
    - ``groups``: the option of each group; ``values``: settings by dotted key;
    - ``sweep``: lists of values by dotted key or group. All combinations are trained;
    - ``differs``: a note for each setting of the file that is trained differently here;
    - ``details``: a note for each that changes little, or in some cases only;
    - ``missing``: what the file names and this machine lacks;
    - ``defaults``: a note for each value that the file does not set;
    - ``ignored``: the keys that nothing reads.
    """

    origin: str
    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {**self.groups, **self.values}

    def note(self, key: str, value: Any, instead: str, *, detail: bool = False) -> None:
        """Note that a setting of the file is trained differently, and how."""
        notes = self.details if detail else self.differs
        notes.append(f"{key}: {shown(value)} ({instead})")

    def lines(self) -> Iterator[str]:
        """The notes, each list under its heading. Ignored keys share lines."""
        ignored = textwrap.wrap(", ".join(map(printable, self.ignored)), 98, break_on_hyphens=False)
        for heading, notes in (
            ("Trained differently from the file:", self.differs),
            ("Different in detail:", self.details),
            ("Not on this machine:", self.missing),
            ("Not in the file, set by default:", self.defaults),
            ("Ignored:", ignored),
        ):
            if notes:
                yield heading
                yield from (f"  {printable(note)}" for note in notes)

    def note_rest(self, keys: Mapping[str, Any], prefix: str = "") -> None:
        """Note every key that no reader took."""
        for key, value in keys.items():
            name = f"{prefix}{shown(key)}"
            if key not in CHANGES or not value or value == UNCHANGED.get(key):
                self.ignored.append(name)
            else:
                self.note(name, value, CHANGES[key], detail=key in DETAILS)


def shown(value: Any) -> str:
    """A value on one line, at most 100 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."
