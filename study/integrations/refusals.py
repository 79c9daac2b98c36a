"""Loops whose measurements would be wrong, each refused with one line."""

from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.optim import Optimizer

from study.errors import StudyError
from study.integrations.runs import peft_model

KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
"""Axolotl's keys for fused LoRA kernels. It turns them on unless its YAML sets them."""


def check_model(model: nn.Module) -> nn.Module:
    """The PEFT model in ``model``, which hooks can watch.

    Raises :class:`StudyError` for a model without LoRA or with several processes, for one that is
    compiled, and for encoder-decoders.
    """
    processes = _processes()
    if processes > 1:
        raise StudyError(
            f"{processes} processes (DDP, FSDP, DeepSpeed) each see a part of every step: "
            "record a run in one process"
        )
    if isinstance(model, nn.DataParallel):
        raise StudyError("DataParallel gives each GPU a part of every step: record a run on one")
    if any(_is_compiled(module) for module in model.modules()):
        raise StudyError("a compiled model skips the hooks of layers: record without torch.compile")
    if any(type(weight).__name__ == "DTensor" for weight in model.parameters()):
        raise StudyError(
            "FSDP2 (fully_shard) splits every weight, also in one process: record without it"
        )
    found = peft_model(model)
    on = [name for name in ("lora_A", "lora_embedding_A") if _has_adapter(found, name)]
    if on == ["lora_embedding_A"]:
        raise StudyError(
            "the adapter is on embeddings only (lora_embedding_A), and only adapters on linear "
            "layers are measured: adapt linear layers to record"
        )
    if getattr(getattr(found, "config", None), "is_encoder_decoder", False):
        raise StudyError("encoder-decoder models cannot be probed: use a decoder")
    return found


def plain_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer of torch inside the wrappers of accelerate and Lightning.

    Raises :class:`StudyError` if there is none, and for a gradient scaler.
    """
    while True:
        if getattr(optimizer, "scaler", None) is not None:
            raise StudyError(
                "fp16 scales the loss and every gradient (GradScaler): "
                "train in bf16 or float32 to record"
            )
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer):
            break
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise StudyError(
            f"the optimizer is a {type(optimizer).__name__}: give an optimizer of torch, or "
            "accelerate's or Lightning's wrapper of one"
        )
    return optimizer


def check_hooks_ran(table: pd.DataFrame) -> None:
    """Raises :class:`StudyError` if a layer has a gradient but its hooks did not run.

    ``table``: the rows of one probed step.
    """
    by_site = {site: set(rows["layer"]) for site, rows in table.groupby("site", observed=True)}
    trained = by_site.get("A_grad", set())
    bypassed = sorted(trained - by_site.get("adapter_in", trained))
    if bypassed:
        off = ", ".join(KERNELS[:-1]) + f" and {KERNELS[-1]}"
        raise StudyError(
            f"the hooks of {len(bypassed)} trained layers did not run ({bypassed[0]}, ...): a "
            f"fused LoRA kernel bypasses them. In Axolotl set {off} to false; elsewhere turn the "
            'kernel off, or measure sites=["A", "B", "adapter_grad", "adapter_update"]'
        )


def _processes() -> int:
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1


def _has_adapter(model: nn.Module, factor: str) -> bool:
    return any(len(getattr(module, factor, ())) for module in model.modules())


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
