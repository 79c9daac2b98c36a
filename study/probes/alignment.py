"""Alignment of inputs and output gradients with the weight gradient.

The finite-rank curves of a layer depend on it. After s lazy SGD steps, ``B = -gamma G A0^T`` with
``G = sum_t lr_t G_t`` over the updates so far, where ``G_t = dL/dW`` at step t. Momentum and the
clip factor of each step are left out. The statistics relate x and dL/dy of step s to G. They are
those of :class:`study.theory.Layer`, in float32 on the device. ``r_back`` is written to
``adapter_in_grad``, the others to ``adapter_out``. Init[B] is the transposed problem: ``r_back`` is
written to ``adapter_out``, the others to ``adapter_in_grad``. So each row has what its own curve
needs.

Cost per layer: for each accumulated step one weight gradient, ``2 N D O`` FLOPs, half of the frozen
layer's own, and ``4 D O`` bytes per cell, as much as the adapted weights. For each measured step
``2 n D O`` FLOPs, and ``2 O^2 D`` FLOPs and O^2 arcsines for ``r_back``. Only steps that have
predictions are measured. ``r_nuc`` needs the eigenvalues of a matrix of the smaller side of the
layer, in float64: 0.05 s of one thread for 576. On a GPU it waits for them.

Letters: ``K`` cells, ``N`` tokens of a cell, ``n`` sampled tokens, ``D`` / ``O`` in / out features.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from study.adapters.contraction import outer
from study.probes.layers import adapted_layers, on_gradient
from study.vocabulary.quantities import ALIGNMENTS

ALIGNED = ALIGNMENTS[:-1]
"""The statistics of the side that the trained factor reads from. The other side has ``r_back``."""


class Alignment:
    """The accumulated weight gradients ``G_KOD`` and their alignments ``stats``. ``total``: the sum
    of a tensor over the processes that divide a batch."""

    def __init__(
        self,
        model: nn.Module,
        stats: Sequence[str] = ALIGNMENTS,
        total: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.layers, self.stats, self.total = adapted_layers(model), tuple(stats), total
        self._G_KOD: list[Tensor | None] = [None] * len(self.layers)

    @contextmanager
    def accumulate(self, weights_K: Sequence[float]) -> Iterator[None]:
        """Add the weight gradients of the backward pass inside, times the learning rate of the
        update that uses them. Enter this after a probe's ``watch``, which measures before they are
        added."""
        device = self.layers[0].pairs()[0].A_RD.device
        weights_K11 = torch.tensor(weights_K, dtype=torch.float32).view(-1, 1, 1)
        weights_K11 = weights_K11.to(device, non_blocking=True)
        with ExitStack() as hooks:
            for index, layer in enumerate(self.layers):
                on_forward = partial(self._on_forward, index, weights_K11)
                hooks.enter_context(layer.module.register_forward_hook(on_forward))
            yield

    def gradients(self, cell: int) -> dict[str, Tensor]:
        return {
            layer.name: G_KOD[cell]
            for layer, G_KOD in zip(self.layers, self._G_KOD, strict=True)
            if G_KOD is not None
        }

    def set_gradients(self, gradients_K: Sequence[Mapping[str, Tensor]]) -> None:
        """Continue from every cell's :meth:`gradients`. Experts have none."""
        for index, layer in enumerate(self.layers):
            if layer.experts:
                continue
            device = layer.pairs()[0].A_RD.device
            summed = [of_cell[layer.name].to(device) for of_cell in gradients_K]
            self._G_KOD[index] = torch.stack(summed)

    def of(self, factor: str, layer: int, cell: int, x_nF: Tensor) -> dict[str, Tensor]:
        """The statistics of what reaches ``factor``: A gets inputs, B output gradients."""
        G_KOD = self._G_KOD[layer]
        if G_KOD is None:
            return {}
        drawn = self.layers[layer].drawn(cell)
        G_OD = G_KOD[cell] if drawn == "A" else G_KOD[cell].mT
        return (aligned if factor == drawn else crossed)(G_OD, x_nF, self.stats)

    def _on_forward(
        self, layer: int, weights_K11: Tensor, _: nn.Module, args: tuple[Tensor, ...], y: Tensor
    ) -> None:
        if y.requires_grad:
            on_gradient(y, partial(self._on_backward, layer, weights_K11, args[0].detach()))

    def _on_backward(self, layer: int, weights_K11: Tensor, x: Tensor, dy: Tensor) -> None:
        cells = len(weights_K11)
        with torch.no_grad(), torch.autocast(dy.device.type, enabled=False):
            x_KND, dy_KNO = (each.reshape(cells, -1, each.shape[-1]) for each in (x, dy))
            added_KOD = self.total(weight_gradient(x_KND, dy_KNO) * weights_K11)
            G_KOD = self._G_KOD[layer]
            self._G_KOD[layer] = added_KOD if G_KOD is None else G_KOD.add_(added_KOD)


def weight_gradient(x_KND: Tensor, dy_KNO: Tensor) -> Tensor:
    """``dL/dW`` of each cell from a layer's inputs and output gradients: ``[K, O, D]`` float32."""
    # A CPU would round the sums to bf16.
    dtype = torch.float32 if dy_KNO.device.type == "cpu" else dy_KNO.dtype
    return outer(dy_KNO.to(dtype), x_KND.to(dtype))


def aligned(G_OD: Tensor, x_nD: Tensor, stats: Sequence[str]) -> dict[str, Tensor]:
    """The given ones of :data:`ALIGNED`: float32 scalars, NaN if ``G x = 0``."""
    if not set(stats) & set(ALIGNED):
        return {}
    G_OD, x_nD = _at_scale_1(G_OD), _at_scale_1(x_nD)
    G2_OD, x2_nD, y_nO = G_OD.square(), x_nD.square(), x_nD @ G_OD.mT
    rows_O, out_O = G2_OD.sum(1), y_nO.square().sum(0)
    energy, out_energy = x2_nD.sum(), out_O.sum()
    # Outputs without a gradient do not count: sign(0) = 0.
    cos2 = (out_O / rows_O).where(rows_O > 0, 0.0).sum() / (energy * (rows_O > 0).sum())
    found = {
        "r_align": rows_O.sum() * energy / out_energy,
        "r_sign": math.pi / 2 / cos2.where(out_energy > 0, math.nan),
        "r_diag": torch.dot(G2_OD.sum(0), x2_nD.sum(0)) / out_energy,
    }
    if "r_eff" in stats:
        small = G_OD if len(G_OD) <= G_OD.shape[1] else G_OD.mT
        r_eff = rows_O.sum() ** 2 / (small @ small.mT).square().sum()
        found["r_eff"] = r_eff.where(out_energy > 0, math.nan)
    if "r_rows" in stats:
        shares_O = (G2_OD / rows_O[:, None]).square().sum(1).where(rows_O > 0, 0.0)
        found["r_rows"] = (rows_O > 0).sum() / shares_O.sum().where(out_energy > 0, math.nan)
    if "r_nuc" in stats:
        found["r_nuc"] = _nuclear_norm(G_OD).square() / rows_O.sum().where(out_energy > 0, math.nan)
    if "r_joint" in stats:
        # |sym(P M)|^2 = (tr (P M)^2 + |P M|^2) / 2, and P M = (y G)^T x.
        back_nD = y_nO @ G_OD
        crosswise = torch.sum((back_nD @ back_nD.mT) * (x_nD @ x_nD.mT))
        found["r_joint"] = 2 * out_energy**2 / ((y_nO @ y_nO.mT).square().sum() + crosswise)
    return {stat: found[stat] for stat in ALIGNED if stat in stats}


def _nuclear_norm(G_OD: Tensor) -> Tensor:
    """The sum of the singular values, a float32 scalar; NaN for a non-finite entry."""
    small = (G_OD if len(G_OD) <= G_OD.shape[1] else G_OD.mT).double()
    square = small @ small.mT
    # eigvalsh raises an error for a non-finite entry.
    eigenvalues = torch.linalg.eigvalsh(square.nan_to_num(0.0, 0.0, 0.0)).clamp_min(0.0)
    norm = eigenvalues.sqrt().sum()
    return norm.where(square.isfinite().all(), math.nan).float()


def crossed(G_OD: Tensor, g_nO: Tensor, stats: Sequence[str]) -> dict[str, Tensor]:
    """``r_back``, a float32 scalar, if it is in ``stats``. NaN if ``G^T g = 0``.

    The arcsine loses half of its digits near 1: if many rows of G are parallel (a batch of a few
    tokens), the error is up to 3e-4, otherwise 1e-6.
    """
    if "r_back" not in stats:
        return {}
    G_OD = _at_scale_1(G_OD)
    norms_O = G_OD.norm(dim=1, keepdim=True)
    directions_OD = (G_OD / norms_O).where(norms_O > 0, 0.0)
    g_nO = _at_scale_1(g_nO) * (norms_O > 0).mT
    K_OO = (directions_OD @ directions_OD.mT).clamp_(-1.0, 1.0)
    plain = torch.sum((g_nO @ K_OO) * g_nO)
    K_OO.fill_diagonal_(1.0)
    return {"r_back": torch.sum((g_nO @ K_OO.asin_()) * g_nO) / plain}


def _at_scale_1(x: Tensor) -> Tensor:
    """The statistics do not depend on the scale, but squares of small gradients underflow."""
    return x / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
