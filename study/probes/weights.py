"""Weights, their gradients and their updates, read between the backward pass and the next step."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from study.adapters.bank import LoraPair
from study.probes.moments import chunks_of
from study.probes.recorder import Recorder
from study.vocabulary.quantities import UPDATES

Gradients = Sequence[Sequence[tuple[Tensor | None, Tensor | None]]]
"""Those of A and B by layer and cell; None for a factor without one."""


class Update:
    """What a step added to a weight, subtracted chunk by chunk.

    ``gradient``: the chunks are also multiplied by it, for :meth:`descent`; None if not.
    """

    def __init__(self, weight: Tensor, before: Tensor, gradient: Tensor | None) -> None:
        self.weight, self.before, self.gradient = weight, before, gradient
        self._products: list[Tensor] = []

    def numel(self) -> int:
        """The number of its elements."""
        return self.weight.numel()

    def chunks(self) -> Iterator[Tensor]:
        """Its elements, float32."""
        gradients = None if self.gradient is None else chunks_of(self.gradient)
        for new, old in zip(chunks_of(self.weight), chunks_of(self.before), strict=True):
            chunk = new - old
            if gradients is not None:
                self._products.append(torch.dot(next(gradients), chunk))
            yield chunk

    def descent(self, clip_factor: float | Tensor) -> dict[str, Tensor]:
        """Minus the inner product with the gradient before clipping, of the chunks made so far."""
        return {"descent": -torch.stack(self._products).sum() / clip_factor}


class Weights:
    """Reads the adapters. ``descent``: whether it is wanted."""

    def __init__(self, recorder: Recorder, descent: bool) -> None:
        self.recorder, self.descent = recorder, descent
        self._moved = [site in recorder.wanted for site in UPDATES]
        """Whether the updates of A and of B are wanted."""
        self._before: list[list[LoraPair]] = []
        self._gradients: Gradients | None = None

    def before_update(self, gradients: Gradients | None) -> None:
        """See :meth:`study.probes.NormProbe.before_update`."""
        self._gradients = gradients
        for index, layer in enumerate(self.recorder.layers):
            before_K = []
            for cell, pair in enumerate(layer.pairs()):
                A_RD, B_OR = (
                    weight.detach().clone() if moved else weight.detach()
                    for weight, moved in zip(pair[:2], self._moved, strict=True)
                )
                before_K.append(LoraPair(A_RD, B_OR, pair.gamma))
                # The copy is read, not the weight: it is in the cache.
                self.recorder.add("weights", index, cell, before_K[-1])
                given = gradients[index][cell] if gradients else (pair.A_RD.grad, pair.B_OR.grad)
                self.recorder.add("gradients", index, cell, *given)
            self._before.append(before_K)

    def after_update(self, clip_factors: Sequence[float] | Tensor | None) -> None:
        """See :meth:`study.probes.NormProbe.after_update`."""
        recorder = self.recorder
        factors = [1.0] * recorder.cells if clip_factors is None else clip_factors
        for index, before_K in enumerate(self._before):
            pairs = recorder.layers[index].pairs()
            for cell, (before, pair) in enumerate(zip(before_K, pairs, strict=True)):
                if self._gradients is None:
                    gradients, factor = (pair.A_RD.grad, pair.B_OR.grad), factors[cell]
                else:  # copies from before clipping
                    gradients, factor = self._gradients[index][cell], 1.0
                each = zip(self._moved, pair[:2], before[:2], gradients, strict=True)
                updates = [
                    Update(new, old, gradient if self.descent else None) if moved else None
                    for moved, new, old, gradient in each
                ]
                recorder.add("updates", index, cell, *updates)
                for site, update in zip(UPDATES, updates, strict=True):
                    if update is not None and update.gradient is not None:
                        recorder.write(site, index, cell, update.descent, factor)
        self._before, self._gradients = [], None
