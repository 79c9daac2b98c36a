"""What is timed: the base, and the base with a merged or an unmerged adapter.

A merged adapter is ``W0 + gamma B A``, a matrix with the shape of W0. At any rank and under any
rule it costs what the base costs. An unmerged adapter adds two products to each layer,
``2 N R (D + O)`` FLOPs and ``R (D + O)`` weights, as PEFT's forward pass does. ``N``: tokens;
``D``, ``O``: in and out features; ``R``: rank.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from study.adapters import AdapterSpec, dense_weight, features
from study.adapters.bank import initial_pair
from study.adapters.inits import generator_for
from study.errors import StudyError
from study.models import FrozenBase
from study.vocabulary.scaling import gamma

ALPHA = 16.0
_B_STD = 1e-3  # small beside the weights, so that activations stay as in the base


@dataclass(frozen=True)
class Form:
    """``name``: base, control, merged or unmerged. The last two have a rule and a rank.

    The control is the base once more under another name.
    """

    name: str
    scaling: str = ""
    rank: int = 0

    @property
    def gamma(self) -> float:
        """The multiplier on ``B A``; 0 without an adapter."""
        return gamma(self.scaling, ALPHA, self.rank) if self.rank else 0.0


class Unmerged(nn.Module):
    """A linear layer and its adapter: ``W0 x + gamma B (A x)``. ``B_OR`` is stored transposed."""

    def __init__(self, base: nn.Module, A_RD: Tensor, B_RO: Tensor, gamma: float) -> None:
        super().__init__()
        self.base, self.gamma = base, gamma
        self.A_RD, self.B_RO = (
            nn.Parameter(factor, requires_grad=False) for factor in (A_RD, B_RO)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.A_RD.mT) @ self.B_RO * self.gamma


class Factors:
    """An adapter of the highest rank on every block linear. Lower ranks use its first rows.

    Raises :class:`StudyError` for a quantised base.
    """

    def __init__(self, base: FrozenBase, rank: int) -> None:
        self.linears = {path: base.model.get_submodule(path) for path in base.card.linears}
        if not all(dense_weight(linear) is not None for linear in self.linears.values()):
            raise StudyError(
                f"{base.card.name} is quantised, and an adapter cannot be merged into quantised "
                "weights: choose a model in full precision"
            )
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for path, linear in self.linears.items():
            d, o = features(linear)
            A_RD, _ = initial_pair(AdapterSpec(rank, 1.0), path, d, o)
            B_RO = torch.empty(rank, o).normal_(std=_B_STD, generator=generator_for(0, f"{path}/B"))
            like: Any = linear.weight
            self.pairs[path] = (A_RD.to(like), B_RO.to(like))

    def modules(self, form: Form) -> dict[str, nn.Module]:
        """The module that replaces each linear layer, by path.

        Every form copies its weights: reading a memory-mapped file takes another time than reading
        allocated memory.
        """
        return {path: self._module(path, linear, form) for path, linear in self.linears.items()}

    def _module(self, path: str, linear: nn.Module, form: Form) -> nn.Module:
        A_RD, B_RO = (factor[: form.rank] for factor in self.pairs[path])
        weight: Any = linear.weight
        if form.name != "merged":
            twin = _with_weight(linear, weight.clone())
            return Unmerged(twin, A_RD, B_RO, form.gamma) if form.name == "unmerged" else twin
        delta_OD = (B_RO.mT @ A_RD) * form.gamma
        transposed = not isinstance(linear, nn.Linear)
        return _with_weight(linear, weight + (delta_OD.mT if transposed else delta_OD))


def _with_weight(linear: nn.Module, weight: Tensor) -> nn.Module:
    twin = copy.copy(linear)  # shallow: the copy shares hooks and bias
    twin._parameters = {**linear._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    return twin


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """``model`` with ``modules`` at their paths; restored on exit."""
    before = {path: model.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)
