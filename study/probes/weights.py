"""Weights, their gradients and their updates, read between the backward pass and the next step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from study.adapters.bank import LoraPair
from study.probes.recorder import Recorder
from study.probes.spectra import Core, core, largest_singular_values
from study.vocabulary.quantities import UPDATES

Gradients = Sequence[Sequence[tuple[Tensor | None, Tensor | None]]]
"""Those of A and B by layer and cell; None for a factor without one."""


class Weights:
    """Reads the adapters.

    ``spectra``: whether the largest singular value of delta_w is wanted. That of experts, a stack
    of many matrices, is not computed.
    """

    def __init__(self, recorder: Recorder, spectra: bool) -> None:
        self.recorder, self.spectra = recorder, spectra
        self._before: list[list[tuple[Tensor, Tensor]]] = []
        self._gradients: Gradients | None = None

    def before_update(self, gradients: Gradients | None) -> None:
        """See :meth:`study.probes.NormProbe.before_update`."""
        recorder = self.recorder
        self._gradients = gradients
        cores: dict[tuple[int, int], Core] = {}
        for index, layer in enumerate(recorder.layers):
            pairs = layer.pairs()
            for cell, pair in enumerate(pairs):
                found = recorder.add("weights", index, cell, pair)
                if self.spectra and "delta_w" in found and not layer.experts:
                    with recorder.measuring():
                        cores[index, cell] = _core(pair, found["delta_w"])
                given = gradients[index][cell] if gradients else (pair.A_RD.grad, pair.B_OR.grad)
                recorder.add("gradients", index, cell, *given)
            if recorder.wanted_of("updates"):
                self._before.append([(A.detach().clone(), B.detach().clone()) for A, B, _ in pairs])
        values = largest_singular_values(list(cores.values()))
        for (index, cell), value in zip(cores, values, strict=True):
            recorder.write("delta_w", index, cell, lambda value: {"spectral": value}, value)

    def after_update(self, clip_factors: Sequence[float] | Tensor | None) -> None:
        """See :meth:`study.probes.NormProbe.after_update`."""
        recorder = self.recorder
        factors = [1.0] * recorder.cells if clip_factors is None else clip_factors
        for index, before_K in enumerate(self._before):
            pairs = recorder.layers[index].pairs()
            for cell, (before, pair) in enumerate(zip(before_K, pairs, strict=True)):
                updates = [
                    torch.sub(weight.detach(), old, out=old)
                    for weight, old in zip(pair[:2], before, strict=True)
                ]
                recorder.add("updates", index, cell, *updates)
                if self._gradients is None:
                    gradients, factor = (pair.A_RD.grad, pair.B_OR.grad), factors[cell]
                else:  # copies from before clipping
                    gradients, factor = self._gradients[index][cell], 1.0
                for site, gradient, update in zip(UPDATES, gradients, updates, strict=True):
                    if gradient is not None:
                        recorder.write(site, index, cell, _descent, gradient, update, factor)
        self._before, self._gradients = [], None


def _descent(gradient: Tensor, update: Tensor, clip_factor: float | Tensor) -> dict[str, Tensor]:
    """Minus the inner product of the update and the gradient before clipping."""
    product = torch.dot(gradient.flatten().float(), update.flatten().float())
    return {"descent": -product / clip_factor}


def _core(pair: LoraPair, delta_w_OD: Tensor) -> Core:
    """The core of ``delta_w``, from the factors or from the product, whichever is smaller."""
    if pair.A_RD.numel() + pair.B_OR.numel() < delta_w_OD.numel():
        scale, square_mm = core(pair.B_OR.float(), pair.A_RD.float())
        return Core(scale * pair.gamma, square_mm)
    return core(delta_w_OD)
