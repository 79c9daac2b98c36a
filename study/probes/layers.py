"""The adapted layers of a model: our banks, or PEFT's LoRA layers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, Stack, initial_pair, own, undivided
from study.errors import StudyError
from study.vocabulary.inits import INITS


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted linear, or one adapted weight of experts. ``name``: its path in the base model.

    - ``module``: computes ``W0 x + gamma B A x``; that of experts is never called;
    - ``pairs``: returns its K adapters: of divided factors, this process's part;
    - ``stacks``: as :meth:`study.adapters.bank.LoraBank.stacks` returns them;
    - ``specs``: how they were drawn; None if unknown, as for PEFT's;
    - ``variant``: PEFT's name for another computation, such as DoRA's rescaling; empty if none;
    - ``base``: returns the frozen linear; None if the layer adds more to it than this adapter;
    - ``dropout``: PEFT's module. Our banks show what they drop;
    - ``first_A_RD``: a copy of PEFT's A, made when the probe was made. Our banks draw theirs again.
    """

    name: str
    module: nn.Module
    d_in: int
    d_out: int
    pairs: Callable[[], list[LoraPair]]
    stacks: Callable[..., list[Stack]]
    base: Callable[[], nn.Module | None]
    specs: tuple[AdapterSpec, ...] | None = None
    variant: str = ""
    is_on: Callable[[], bool] = lambda: True
    dropout: nn.Dropout | None = None
    first_A_RD: Tensor | None = None

    @property
    def experts(self) -> int:
        A_RD = self.pairs()[0].A_RD
        return A_RD.shape[0] if A_RD.ndim == 3 else 0

    def drawn(self, cell: int) -> str:
        """The factor that was random at the start, ``A`` or ``B``; PEFT's default if unknown."""
        if self.specs is None or self.specs[cell].start is not None:
            return "A"
        return INITS[self.specs[cell].init].drawn

    def initial_A(self, cell: int) -> Tensor | None:
        """``A0_RD``: the copy, or drawn again. None if it is unknown or 0."""
        if self.first_A_RD is not None:
            return self.first_A_RD
        if self.specs is None or self.drawn(cell) != "A":
            return None
        shape = self.d_in, self.d_out, self.experts
        A0_RD, _ = initial_pair(self.specs[cell], self.name, *shape)
        return A0_RD.to(self.pairs()[cell].A_RD, non_blocking=True)

    @property
    def block(self) -> int:
        """The index of the layer's transformer block; -1 if it is in none."""
        found = re.search(r"\.(\d+)(\.|$)", self.name)
        return int(found[1]) if found else -1

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]


def adapted_layers(
    model: nn.Module, adapter: str | None = None, keeps_A: bool = False
) -> list[AdaptedLayer]:
    """Every adapted layer, in the model's order. ``adapter``: which of PEFT's to read. ``keeps_A``:
    whether to copy A of PEFT's, so that its motion can be measured."""
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, LoraBank):
            pairs, base = (partial(getattr, module, name) for name in ("pairs", "base"))
            of_bank = *module.features, pairs, module.stacks, base
            layers.append(AdaptedLayer(module.layer, module, *of_bank, module.specs))
        elif hasattr(module, "lora_A") and hasattr(module, "lora_B") and hasattr(module, "scaling"):
            name = path.removeprefix("base_model.model.")
            if (read := _read_adapter(module, adapter)) is not None:
                layers.append(_peft_layer(name, module, read, keeps_A))
    if not layers:
        active = ", ".join(active_adapters(model)) or "none"
        of = f" of adapter {adapter!r} (active: {active})" if adapter else ""
        why = f"{type(model).__name__} has no LoRA layer{of} to probe"
        raise StudyError(f"{why}: adapt it with PEFT first")
    return layers


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the LoRA adapters that are active in any PEFT layer, in order of appearance."""
    modules: list[Any] = list(model.modules())
    adapted = [m for m in modules if hasattr(m, "lora_A") and hasattr(m, "active_adapters")]
    return list(dict.fromkeys(name for module in adapted for name in _active_in(module)))


def _active_in(module: Any) -> list[str]:
    """The active adapters of a PEFT layer. That of an embedding holds them under other names."""
    embedding = getattr(module, "lora_embedding_A", ())
    return [n for n in module.active_adapters if n in module.lora_A or n in embedding]


def _read_adapter(module: Any, adapter: str | None) -> str | None:
    """The adapter to read in a PEFT layer; None if no such adapter is active there."""
    active = [name for name in _active_in(module) if adapter in (None, name)]
    if len(active) > 1:
        why = f"{len(active)} active LoRA adapters in one layer ({', '.join(active)})"
        raise StudyError(f"{why}: name one: NormProbe(model, adapter={active[0]!r})")
    return active[0] if active else None


def _peft_layer(name: str, module: Any, adapter: str, keeps_A: bool) -> AdaptedLayer:
    """PEFT keeps a dict of adapters in each layer. ``scaling`` is gamma, the full multiplier."""
    down: Any = dict(module.lora_A.items()).get(adapter)
    if (
        getattr(down, "weight", None) is None
        or down.weight.ndim != 2
        or hasattr(module, "parameter_name")
        or isinstance(module.get_base_layer(), nn.MultiheadAttention)
    ):
        why = f"{name} is a {type(module).__name__}, and only linear layers can be probed"
        raise StudyError(f"{why}: leave it out of target_modules and target_parameters")

    up, variant = module.lora_B[adapter], ""
    if adapter in getattr(module, "lora_variant", {}):
        variant = type(module.lora_variant[adapter]).__name__
    elif getattr(module, "use_dora", {}).get(adapter):  # before PEFT had variants
        variant = "DoRA"
    elif up.bias is not None:
        variant = "lora_bias"

    def pairs() -> list[LoraPair]:
        return [LoraPair(down.weight, up.weight, float(module.scaling[adapter]))]

    def base() -> nn.Module | None:
        return module.get_base_layer() if len(_active_in(module)) == 1 else None

    def stacks(whole: bool = False) -> list[Stack]:
        ((*weights, gamma),) = pairs()
        gamma_111 = torch.full((1, 1, 1), gamma, device=weights[0].device)
        dA, dB = (None if w.grad is None else own(w.grad)[None] for w in weights)
        A_1RD, B_1OR = ((undivided if whole else own)(w.detach())[None] for w in weights)
        return [Stack(0, A_1RD, B_1OR, gamma_111, [gamma], [len(weights[0])], (dA, dB))]

    dropout = dict(getattr(module, "lora_dropout", {})).get(adapter)
    return AdaptedLayer(
        *(name, module, down.weight.shape[1], up.weight.shape[0], pairs, stacks, base),
        variant=variant,
        is_on=lambda: not module.disable_adapters and adapter in module.active_adapters,
        dropout=dropout if isinstance(dropout, nn.Dropout) else None,
        first_A_RD=undivided(down.weight.detach()).clone() if keeps_A else None,
    )


def on_gradient(y: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Call ``hook`` with the gradient of a layer's output, in the shape of ``y`` or of what it
    views. A hook of a view is not called if the model changes the view in place, as Falcon does."""
    whole = y._base
    if whole is None or not whole.requires_grad or whole.numel() != y.numel():
        whole = y
    whole.register_hook(hook)
