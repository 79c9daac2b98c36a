"""Neighbouring cells of one rank in one layer: their stacked factors, and their products.

Letters: ``K`` cells, ``k`` cells of one rank, ``N`` tokens of one cell, ``D`` in features, ``O``
out features, ``R`` rank.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from study.adapters.contraction import Contraction, Shows, factored, merged, mixed


class Forms(NamedTuple):
    """How the products of a pass are computed: names of
    :data:`study.adapters.contraction.FORMS`.

    ``plain``: in a pass that only trains or evaluates. ``probed``: in one whose probe needs the
    product ``B A`` itself, so that a form that computes it costs less.
    """

    plain: str = "factored"
    probed: str = "factored"

    @classmethod
    def cheapest(cls, contraction: Contraction, d: int, o: int, rank: int) -> "Forms":
        """Those that ``contraction`` chooses for ``A: [R, D]`` and ``B: [O, R]``."""
        return cls(
            contraction.choose(d, o, rank), contraction.choose(d, o, rank, needs_product=True)
        )


FACTORED = Forms()


class Bucket(nn.Module):
    """Neighbouring cells of one rank, which share their products.

    ``drawn``: A, B and gamma of each cell. ``A_kRD`` and ``B_kOR`` are the registered parameters,
    and ``cells`` is their number of cells.
    """

    gamma_k11: Tensor

    def __init__(
        self, drawn: Sequence[tuple[Tensor, Tensor, float]], forms: Forms = FACTORED
    ) -> None:
        super().__init__()
        A_k, B_k, self.gammas = zip(*drawn, strict=True)
        self.cells = len(drawn)
        self.A_kRD, self.B_kOR = nn.Parameter(torch.stack(A_k)), nn.Parameter(torch.stack(B_k))
        self.register_buffer(
            "gamma_k11", torch.tensor(self.gammas).view(-1, 1, 1), persistent=False
        )
        self.forms = forms
        self.shows: Shows | None = None
        self._needs_product = False
        self._keeps = False
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def form(self) -> str:
        """The form of the pass that is running."""
        return self.forms.probed if self._needs_product else self.forms.plain

    @contextmanager
    def showing(self, shows: Shows, needs_product: bool) -> Iterator[None]:
        """Inside, the functions in ``shows`` get the tensors that passes compute on their way.

        ``needs_product``: it is formed anyway, so passes use :attr:`Forms.probed`.
        """
        self.shows, self._needs_product = shows, needs_product
        try:
            yield
        finally:
            self.shows, self._needs_product = None, False

    def add_to(self, y_kNO: Tensor, x_kND: Tensor) -> Tensor:
        """``y + gamma B A x``."""
        return factored(y_kNO, x_kND, self.A_kRD, self.B_kOR, self.gamma_k11)

    def multiply(self, x_kND: Tensor, W_OD: Tensor) -> Tensor:
        """``x (W + gamma B A)^T``, ``[k, N, O]``, through the merged weight."""
        V_kOD = self._added_to(W_OD)
        if self.form == "mixed":
            return mixed(x_kND, V_kOD, self.A_kRD, self.B_kOR, self.gamma_k11)
        return torch.bmm(x_kND, V_kOD.mT)

    def _added_to(self, W_OD: Tensor) -> Tensor:
        """``W + gamma B A``, ``[k, O, D]``. In the mixed form no gradient flows through it."""
        if self._kept is not None:
            return self._kept[1]
        with torch.set_grad_enabled(self.form == "merged" and torch.is_grad_enabled()):
            made = merged(W_OD, self.A_kRD, self.B_kOR, self.gamma_k11, self.shows)
        if not self._keeps:
            return made
        self._kept = made, made.detach().requires_grad_(made.requires_grad)
        return self._kept[1]

    @contextmanager
    def merged_once(self, W_OD: Tensor | None = None) -> Iterator[None]:
        """Inside, weights are merged once, and all passes reuse them.

        ``W_OD``: merge now, as a compiled pass needs it. None: merge in the first pass.

        No factor may change inside. Gradients accumulate in the merged weights and are projected on
        A and B once, at the end. Each merged weight and its gradient hold ``D O`` floats. A bucket
        whose form does not merge is not affected.
        """
        self._keeps = True
        try:
            if W_OD is not None and self.form != "factored":
                self._added_to(W_OD)
            yield
            if self._kept is not None and self._kept[1].grad is not None:
                self._kept[0].backward(self._kept[1].grad)
        finally:
            self._keeps, self._kept = False, None
