"""``gamma B A`` of one cell in one layer, and what is multiplied by it.

Letters: ``n`` sampled tokens, ``D`` / ``O`` in / out features, ``R`` rank, ``E`` experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from study.adapters.bank import LoraPair
from study.probes.moments import chunk_size, chunks_of


@dataclass(frozen=True)
class Product:
    """``gamma B A``, ``[O, D]``; of experts ``[E, O, D]``.

    - ``BA_OD``: the product without gamma, float32; None if it is not held. Its elements are then
      computed a few rows at a time, and tokens are multiplied by both factors;
    - ``z_nR``, ``dz_nR``: ``gamma A x`` and ``gamma B^T dy`` of the sampled tokens, float32, if the
      pass has computed them. They save one of two products;
    - ``kept_nD``: what dropout multiplies the adapter's inputs by, 0 or ``1 / (1 - p)``; None
      without dropout.
    """

    pair: LoraPair
    BA_OD: Tensor | None = None
    z_nR: Tensor | None = None
    dz_nR: Tensor | None = None
    kept_nD: Tensor | None = None

    @property
    def is_compact(self) -> bool:
        """Whether it has fewer elements than its factors, so that tokens should be multiplied by
        it, not by both factors. That is above R = D O / (D + O)."""
        A_RD, B_OR, _ = self.pair
        return self.numel() < A_RD.numel() + B_OR.numel()

    def numel(self) -> int:
        """The number of its elements."""
        A_RD, B_OR, _ = self.pair
        return B_OR.shape[:-1].numel() * A_RD.shape[-1]

    def chunks(self) -> Iterator[Tensor]:
        """Its elements: ``2 D O R`` FLOPs if it is not held."""
        A_RD, B_OR, gamma = self.pair
        if self.BA_OD is not None:
            for chunk in chunks_of(self.BA_OD):
                yield chunk * gamma
            return
        d = A_RD.shape[-1]
        rows = max(1, chunk_size(A_RD.device) // d)
        matrices = zip(A_RD, B_OR, strict=True) if A_RD.ndim == 3 else [(A_RD, B_OR)]
        for A, B in matrices:
            A = A.detach().float()
            for some in B.detach().float().split(rows):
                yield (some * gamma) @ A

    def formed(self) -> "Product":
        """The same, with the product held."""
        if self.BA_OD is not None:
            return self
        A_RD, B_OR, _ = self.pair
        return Product(self.pair, B_OR.float() @ A_RD.float())

    def of_inputs(self, x_nD: Tensor) -> Tensor:
        """``gamma B A x`` with x after dropout, ``[n, O]``."""
        A_RD, B_OR, gamma = self.pair
        if self.kept_nD is not None:
            x_nD = x_nD * self.kept_nD
        if self.BA_OD is not None:
            return (x_nD * gamma) @ self.BA_OD.mT
        z_nR = x_nD @ A_RD.float().mT * gamma if self.z_nR is None else self.z_nR
        return z_nR @ B_OR.float().mT

    def of_output_gradients(self, dy_nO: Tensor) -> Tensor:
        """``gamma A^T B^T dy``, ``[n, D]``, and back through dropout."""
        A_RD, B_OR, gamma = self.pair
        if self.BA_OD is not None:
            dx_nD = (dy_nO * gamma) @ self.BA_OD
        else:
            dz_nR = dy_nO @ B_OR.float() * gamma if self.dz_nR is None else self.dz_nR
            dx_nD = dz_nR @ A_RD.float()
        return dx_nD if self.kept_nD is None else dx_nD * self.kept_nD
