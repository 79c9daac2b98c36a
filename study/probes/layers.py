"""Adapted layers of a model, whoever adapted them: our banks or PEFT's LoRA layers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, initial_pair
from study.errors import StudyError
from study.vocabulary.inits import INITS


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted linear: its path in the base model, the module whose call is ``W0 x + gamma B A x``, its K pairs.

    ``specs``: how the K adapters were drawn; None where that is not known, as of PEFT's. ``variant``: what else PEFT
    does to the layer's output, such as DoRA's rescaling; empty where nothing.
    """

    name: str
    module: nn.Module
    pairs: Callable[[], list[LoraPair]]
    specs: tuple[AdapterSpec, ...] | None = None
    variant: str = ""
    is_on: Callable[[], bool] = lambda: True

    @property
    def d_in(self) -> int:
        """Features of its input."""
        return self.pairs()[0].A_RD.shape[1]

    @property
    def d_out(self) -> int:
        """Features of its output."""
        return self.pairs()[0].B_OR.shape[0]

    def drawn(self, cell: int) -> str:
        """The factor that began at random, ``A`` or ``B``; PEFT's default where it is not known."""
        return (
            INITS[self.specs[cell].init].drawn
            if self.specs and self.specs[cell].start is None
            else "A"
        )

    def initial_A(self, cell: int) -> Tensor | None:
        """``A0_RD``, drawn once more rather than kept; None where it is not known, or 0."""
        if self.specs is None or self.drawn(cell) != "A":
            return None
        A_RD = self.pairs()[cell].A_RD
        return initial_pair(self.specs[cell], self.name, self.d_in, self.d_out)[0].to(A_RD)

    @property
    def block(self) -> int:
        """Index of the transformer block that the layer is in; -1 outside of any."""
        found = re.search(r"\.(\d+)(\.|$)", self.name)
        return int(found[1]) if found else -1

    @property
    def kind(self) -> str:
        """The projection: the last component of the path, such as ``q_proj``."""
        return self.name.rpartition(".")[2]


def adapted_layers(model: nn.Module, adapter: str | None = None) -> list[AdaptedLayer]:
    """Every adapted layer in the order of the model's modules.

    A PEFT layer is read through one of its active adapters, ``adapter``, which must be named where several are active.
    Raises :class:`StudyError` where there is none to read, or one that is no linear layer.
    """
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, LoraBank):
            layers.append(
                AdaptedLayer(module.layer, module, partial(getattr, module, "pairs"), module.specs)
            )
        elif hasattr(module, "lora_A") and hasattr(module, "lora_B") and hasattr(module, "scaling"):
            name = path.removeprefix("base_model.model.")
            if (read := _read_adapter(module, adapter)) is not None:
                layers.append(_peft_layer(name, module, read))
    if not layers:
        of = (
            f" of adapter {adapter!r} (active: {', '.join(active_adapters(model)) or 'none'})"
            if adapter
            else ""
        )
        raise StudyError(
            f"{type(model).__name__} has no LoRA layer{of} to probe: adapt it with PEFT or study.adapters first"
        )
    return layers


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the LoRA adapters that are active in any of PEFT's layers, in the order in which they come."""
    every: list[Any] = list(model.modules())
    modules = [
        module
        for module in every
        if hasattr(module, "lora_A") and hasattr(module, "active_adapters")
    ]
    return list(
        dict.fromkeys(
            name for module in modules for name in module.active_adapters if name in module.lora_A
        )
    )


def _read_adapter(module: Any, adapter: str | None) -> str | None:
    """The adapter to read a PEFT layer through; None where the layer has no active one to read."""
    active = [
        name for name in module.active_adapters if name in module.lora_A and adapter in (None, name)
    ]
    if len(active) > 1:
        raise StudyError(
            f"{len(active)} active LoRA adapters in one layer ({', '.join(active)}): activate exactly one to probe it, "
            f"or name it: NormProbe(model, adapter={active[0]!r})"
        )
    return active[0] if active else None


def _peft_layer(name: str, module: Any, adapter: str) -> AdaptedLayer:
    """PEFT keeps a dict of adapters in each layer; ``scaling`` is the full multiplier (lora_B's output is unscaled)."""
    down, up = module.lora_A[adapter], module.lora_B[adapter]
    if (
        getattr(down, "weight", None) is None
        or down.weight.ndim != 2
        or hasattr(module, "parameter_name")
    ):
        raise StudyError(
            f"{name} is a {type(module).__name__} with LoRA, and only linear layers can be probed: leave it out of "
            "target_modules (and target_parameters)"
        )
    return AdaptedLayer(
        name,
        module,
        lambda: [LoraPair(down.weight, up.weight, float(module.scaling[adapter]))],
        variant=_variant(module, adapter),
        is_on=lambda: not module.disable_adapters and adapter in module.active_adapters,
    )


def _variant(module: Any, adapter: str) -> str:
    """What PEFT's layer does beside adding ``gamma B A x``, by PEFT's own name; empty for plain LoRA."""
    if adapter in getattr(module, "lora_variant", {}):
        return type(module.lora_variant[adapter]).__name__
    if getattr(module, "use_dora", {}).get(adapter):  # before PEFT had variants
        return "DoRA"
    return "lora_bias" if module.lora_B[adapter].bias is not None else ""
