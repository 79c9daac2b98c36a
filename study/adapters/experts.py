"""K adapters on the experts of one module: a weight per expert, in one 3-D parameter.

transformers keeps the experts of a mixture as two parameters of one module, ``[E, O, D]`` each, or
``[E, D, O]`` if the module is ``is_transposed``. As in PEFT's ``target_parameters``, every expert
has its own adapter of rank R, ``W_e + gamma B_e A_e``, and the module runs with the sum as its
weight. Only the module sees the inputs, so there is no dropout, and hooks read no activations.

The sum and its products are float32. At ``|delta_w| / |W|`` of 1e-4, 1e-3 and 1e-2, rounding the
sum to bf16 loses 94, 43 and 0.3 % of the adapter's output, by the measure of
:mod:`study.adapters.contraction`. In float32 the loss is 2, 0.1 and 0 %.

Letters: ``E`` experts, ``O`` / ``D`` out / in features, ``R`` rank, ``K`` cells.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, initial_pair
from study.errors import StudyError


def check_possible(experts: Sequence[str], rank: float, dropout: float) -> None:
    """Raise :class:`StudyError` if the weights ``experts``, by path, can't have such adapters."""
    if not experts:
        return
    others = f"or leave experts ({experts[0]}, ...) out of adapter.targets"
    if dropout:
        raise StudyError(f"adapter.dropout={dropout:g} can't act on experts: use 0, {others}")
    if rank == float("inf"):
        raise StudyError(f"adapter.rank=inf is for linear layers: use a finite rank, {others}")


class ExpertBank(LoraBank):
    """The adapters of K cells on one weight of a module of experts, ``base``: A is ``[E, R, D]``
    and B ``[E, O, R]`` per cell. The last word of ``layer`` is the weight's name."""

    @property
    def name(self) -> str:
        return self.layer.rpartition(".")[2]

    @property
    def features(self) -> tuple[int, int]:
        _, first, second = self.base.get_parameter(self.name).shape
        return (first, second) if _is_transposed(self.base) else (second, first)

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        gamma = spec.gamma if spec.start is None else spec.start[self.layer].gamma
        experts = len(self.base.get_parameter(self.name))
        return LoraPair(*initial_pair(spec, self.layer, d, o, experts), gamma)

    def adapted_weight(self, cell: int) -> Tensor:
        """``W_e + gamma B_e A_e`` of every expert for one cell, float32 and in the form of W."""
        W = self.base.get_parameter(self.name).float()
        for bucket in self._buckets():
            if cell < len(bucket.gammas):
                break
            cell -= len(bucket.gammas)
        A_ERD, B_EOR = bucket.A_kRD[cell], bucket.B_kOR[cell]
        factors = (A_ERD.mT, B_EOR.mT) if _is_transposed(self.base) else (B_EOR, A_ERD)
        return torch.baddbmm(W, *factors, alpha=bucket.gammas[cell])


class AdaptedExperts(nn.Module):
    """A module of experts that runs, in float32, with the adapted weights of each cell."""

    def __init__(self, base: nn.Module, banks: Iterable[ExpertBank]) -> None:
        super().__init__()
        self.base, self.banks = base, nn.ModuleList(banks)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        banks: list[ExpertBank] = list(self.banks)  # type: ignore[arg-type]
        cells, first = len(banks[0].specs), self.base.get_parameter(banks[0].name)
        others = {
            name: weight.float()
            for name, weight in self.base.named_parameters()
            if name not in {bank.name for bank in banks}
        }
        out = []
        for cell in range(cells):
            own = [_of_cell(value, cell, cells) for value in args]
            named = {key: _of_cell(value, cell, cells) for key, value in kwargs.items()}
            with torch.autocast(first.device.type, enabled=False):
                weights = others | {bank.name: bank.adapted_weight(cell) for bank in banks}
                y = functional_call(self.base, weights, tuple(own), named)
            out.append(y.to(first.dtype))
        return out[0] if cells == 1 else torch.cat(out)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def _of_cell(value: Any, cell: int, cells: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    part = value.chunk(cells)[cell]
    return part.float() if part.is_floating_point() else part


def _is_transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "is_transposed", False))
