"""``round_once``: base and adapter of PEFT's LoRA layers in one product. Needs torch and PEFT only.

In bf16, PEFT rounds ``W0 x`` and then adds ``d = gamma B A x``. If d is below half a unit in the
last place (1/512 to 1/256 of ``W0 x``), the sum rounds back to ``W0 x`` and the adapter's output is
lost. One product can start from d instead. It accumulates in float32 and is rounded once::

    model = round_once(get_peft_model(base, config))
"""

import warnings
from collections import Counter
from typing import Any, TypeVar

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from study.adapters.bank import dense_weight
from study.adapters.contraction import once_rounded

M = TypeVar("M", bound=nn.Module)


def round_once(model: M) -> M:
    """Replace the forward pass of PEFT's linear LoRA layers in place, and return ``model``.

    The result is PEFT's, with dropout, rsLoRA, ``lora_bias`` and several active adapters. It acts
    in bf16 and fp16 (base or autocast); float32, disabled or merged adapters and ``adapter_names``
    use PEFT's own pass. Call it before ``torch.compile``, and again after ``add_adapter`` or after
    you load a saved adapter. A bias costs a copy of the layer's weights in each pass.

    One warning counts layers that keep PEFT's pass. ``ValueError`` if all do.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    kept = Counter(why for layer in layers if (why := _kept(layer)))
    reasons = ", ".join(f"{count} {why}" for why, count in kept.items()) or "no LoRA layer"
    if kept.total() == len(layers):
        raise ValueError(f"round_once can replace no layer: {reasons}")
    if kept:
        all_kept = f"{kept.total()} of {len(layers)} LoRA layers keep PEFT's forward pass"
        warnings.warn(f"round_once: {all_kept} ({reasons})", stacklevel=2)
    for layer in layers:
        if not _kept(layer):
            layer.__class__ = LinearRoundedOnce
    return model


class LinearRoundedOnce(Linear):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``W0 x + b + gamma B A x``, shape ``[..., O]``, of x of shape ``[..., D]``."""
        bias_O, dtype = self.base_layer.bias, x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        names = [name for name in self.active_adapters if name in self.lora_A]
        is_off = self.disable_adapters or self.merged or not names
        if is_off or args or kwargs or dtype == torch.float32 or _variant(self):
            return super().forward(x, *args, **kwargs)

        outputs = []
        for name in names:
            A, B, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
            h = A(dropout(self._cast_input_dtype(x, A.weight.dtype)))
            outputs.append(B(h) * self.scaling[name])
        d = outputs[0] if len(outputs) == 1 else torch.stack(outputs).sum(0)

        x_1ND, d_1NO = (each.reshape(1, -1, each.shape[-1]) for each in (x, d.to(dtype)))
        W_OD: Any = dense_weight(self.base_layer)
        return once_rounded(d_1NO, x_1ND, W_OD, bias_O).view(d.shape)


def _kept(layer: Any) -> str:
    base = layer.base_layer
    if type(layer) not in (Linear, LinearRoundedOnce):
        return f"of type {type(layer).__name__}"
    if type(base) not in (nn.Linear, Conv1D) or type(base.weight) is not nn.Parameter:
        return f"on a {type(base).__name__}"
    if base.bias is not None and base.bias.requires_grad:
        return "with a bias in training"
    if "forward" in {*vars(layer), *vars(base)} or base._forward_hooks or base._forward_pre_hooks:
        return "with hooks of another library"
    return _variant(layer)


def _variant(layer: Any) -> str:
    active, variants = layer.active_adapters, getattr(layer, "lora_variant", {})
    named = (f"with {type(variants[name]).__name__}" for name in active if name in variants)
    is_dora = any(layer.use_dora.get(name) for name in active)  # before PEFT had variants
    return next(named, "with DoRA" if is_dora else "")
