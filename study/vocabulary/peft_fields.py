"""The fields of PEFT's ``adapter_config.json``, and which of their values can be read here.

Many fields change ``W0``, or ``W0 x + gamma B A x``. Their plain values are here; others are
refused, in trained adapters and in configurations.
"""

import re
from collections.abc import Mapping
from typing import Any

INERT = (
    *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "lora_dropout"),
    *("target_modules", "rank_pattern", "alpha_pattern", "init_lora_weights"),
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
)
"""Fields that the readers check themselves, and fields that change nothing by themselves: options
of an init act only if ``init_lora_weights`` names that init."""

LAYERS = ("exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")
"""Fields that choose layers. The tensors of a trained adapter show the choice already."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "revision": ("main",),
    **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "ensure_weight_tying"), (False,)),
    **dict.fromkeys(("modules_to_save", "layer_replication", "alora_invocation_tokens"), ([],)),
    "trainable_token_indices": ([], {}),
    **dict.fromkeys(("megatron_config", "velora_config", "monteclora_config"), ()),
    **dict.fromkeys(("use_bdlora", "arrow_config", "kasa_config"), (False,)),
}
"""The values of other fields that mean plain LoRA on the unchanged base. Null always does."""

BESIDE = ("bias", "lora_bias", "modules_to_save", "trainable_token_indices")
"""Fields that train other weights next to A and B. gamma multiplies a bias of B, and no other."""

KEEPING_BASE = (True, False, "gaussian", "orthogonal", "eva", "mica")
"""Values of ``init_lora_weights`` that do not change W0. Others, such as pissa, olora, corda, loftq
and lora_ga, subtract the first ``gamma B A`` from W0 or quantise it."""

MAMBAS, OF_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ("out_proj",)
"""Families (``model_type``), and names of their linear layers on which PEFT (0.21) refuses LoRA:
fused kernels of these families read the weight and not the layer."""

EMPTY: tuple[Any, ...] = (False, "", [], {})
"""Values with which an unknown field can be ignored."""


def refusal(config: Mapping[str, Any], *, trained: bool) -> str | None:
    """Why a configuration is not plain LoRA on an unchanged language model; None if it is.

    ``trained``: the adapter's tensors exist too, so fields that only choose layers are ignored.

    >>> refusal({"use_dora": True}, trained=True)
    'use_dora=True is not plain LoRA: only null or False can be read'
    """
    task, mapping = config.get("task_type"), config.get("auto_mapping")
    if task not in (None, "CAUSAL_LM"):
        return f"task_type={_short(task)}: only CAUSAL_LM can be read"
    base = str(mapping.get("base_model_class", "")) if isinstance(mapping, dict) else ""
    if base and not re.search("CausalLM|LMHead|ConditionalGeneration", base):
        return f"its base is a {_short(base)}: only causal language models can be read"
    ignored = {*INERT, *(LAYERS if trained else ())}
    for key, value in config.items():
        plain = PLAIN.get(key, EMPTY)
        if key not in ignored and not _among(value, (None, *plain)):
            choices = " or ".join(["null", *map(repr, plain)])
            return f"{key}={_short(value)} is not plain LoRA: only {choices} can be read"
    init = config.get("init_lora_weights")
    if not _among(init, (None, *KEEPING_BASE)):
        choices = ", ".join(map(str, KEEPING_BASE))
        return (
            f"init_lora_weights={_short(init)} changes the base's weights: only {choices} can be "
            "read (PEFT's save_pretrained converts others with "
            "path_initial_model_for_weight_conversion)"
        )
    return None


def _among(value: Any, choices: tuple[Any, ...]) -> bool:
    """Whether it is one of them, of the same type: 0 is not False, and ``"false"`` neither."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
