"""Adapted layers of a model, whoever adapted them: our banks or PEFT's LoRA layers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, initial_pair
from study.errors import StudyError
from study.inits import INITS


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted linear: its path in the base model, the module whose call is ``W0 x + gamma B A x``, its K pairs.

    ``specs``: how the K adapters were drawn; None where that is not known, as of PEFT's.
    """

    name: str
    module: nn.Module
    pairs: Callable[[], list[LoraPair]]
    specs: tuple[AdapterSpec, ...] | None = None

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
        return INITS[self.specs[cell].init].drawn if self.specs else "A"

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


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """Every adapted layer in the order of the model's modules.

    A PEFT layer is read through its active adapter. Raises :class:`StudyError` where there is none to read.
    """
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, LoraBank):
            layers.append(AdaptedLayer(module.layer, module, partial(getattr, module, "pairs"), module.specs))
        elif hasattr(module, "lora_A") and hasattr(module, "lora_B") and hasattr(module, "scaling"):
            layers.append(AdaptedLayer(path.removeprefix("base_model.model."), module, partial(_peft_pairs, module)))
    if not layers:
        raise StudyError(
            f"{type(model).__name__} has no LoRA layer to probe: adapt it with PEFT or study.adapters first"
        )
    return layers


def _peft_pairs(module: Any) -> list[LoraPair]:
    """PEFT keeps a dict of adapters in each layer; ``scaling`` is the full multiplier (lora_B's output is unscaled)."""
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1:
        raise StudyError(
            f"{len(active)} active LoRA adapters in one layer ({active}): activate exactly one to probe it"
        )
    name = active[0]
    return [LoraPair(module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))]
