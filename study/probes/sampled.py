"""Quantities computed from a few tokens: output and input gradient of the adapter, rho, alignments.

Hooks cannot read the adapter's own output and input gradient in every implementation, so they are
computed from (x, dL/dy, A, B, gamma) on a sample of the tokens.

Letters: ``N`` tokens of a cell, ``n`` sampled tokens, ``F`` features (``D`` in, ``O`` out).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from study.adapters.bank import LoraPair
from study.adapters.inits import generator_for
from study.probes.alignment import Alignment
from study.probes.product import Product
from study.probes.recorder import Recorder


class SampledTokens:
    """Measures on ``tokens`` tokens of every cell, ``[n, F]`` float32."""

    def __init__(self, recorder: Recorder, tokens: int, alignment: Alignment | None) -> None:
        self.recorder, self.tokens, self.alignment = recorder, tokens, alignment
        self.rho = "rho" in recorder.stats and "A" in recorder.wanted

    @property
    def need_inputs(self) -> bool:
        """Whether anything is computed from inputs."""
        return self.rho or bool(self.recorder.wanted_of("sampled_inputs"))

    @property
    def need_output_gradients(self) -> bool:
        """Whether anything is computed from output gradients."""
        return bool(self.recorder.wanted_of("sampled_output_gradients"))

    def of(self, x_NF: Tensor, real: Tensor | None, counts: Sequence[int]) -> Tensor:
        """Evenly spaced real tokens of all processes, the same for every cell: ``[n, F]`` float32.

        ``real``: the indices of this process's real tokens; None if all of its tokens are real.
        ``counts``: how many real tokens each process has.
        """
        world, count = self.recorder.world, sum(counts)
        if world.size == 1:
            spaced = _spaced(count, self.tokens, x_NF.device)
            return x_NF.index_select(0, spaced if real is None else real[spaced]).float()
        spaced = _spaced(count, self.tokens)
        ends = torch.tensor([0, *accumulate(counts)])
        places = torch.searchsorted(spaced, ends).tolist()  # of each process in the sample
        own = spaced[slice(*places[world.number :][:2])] - ends[world.number]
        own = own.to(x_NF.device, non_blocking=True)
        x_mF = x_NF[own if real is None else real[own]].float()
        return world.joined(x_mF, [end - start for start, end in pairwise(places)])

    def feed_noise(self) -> None:
        """See :meth:`study.probes.NormProbe.feed_noise`."""
        device = self.recorder.device
        for index, layer in enumerate(self.recorder.layers):
            stream = generator_for(0, f"{layer.name}/noise")
            x_nD, dy_nO = (
                torch.randn(self.tokens, size, generator=stream).to(device, non_blocking=True)
                for size in (layer.d_in, layer.d_out)
            )
            for cell, pair in enumerate(layer.whole_pairs()):
                product = Product(pair)
                self.feed_inputs(index, cell, x_nD, product)
                self.align_inputs(index, cell, x_nD, pair)
                self.feed_output_gradients(index, cell, dy_nO, product)
                self.align_output_gradients(index, cell, dy_nO)

    def feed_inputs(self, layer: int, cell: int, x_nD: Tensor, product: Product) -> None:
        """Measure the product of sampled inputs with the adapter."""
        self.recorder.add("sampled_inputs", layer, cell, x_nD, product)

    def align_inputs(self, layer: int, cell: int, x_nD: Tensor, pair: LoraPair) -> None:
        """Measure the alignments of sampled inputs, and rho."""
        recorder = self.recorder
        if self.alignment is not None:
            recorder.write("adapter_out", layer, cell, self.alignment.of_inputs, layer, cell, x_nD)
        if self.rho and (A0_RD := recorder.layers[layer].initial_A(cell)) is not None:
            recorder.write("A", layer, cell, _rho, x_nD, pair, A0_RD)

    def feed_output_gradients(self, layer: int, cell: int, dy_nO: Tensor, product: Product) -> None:
        """Measure the product of sampled output gradients with the adapter."""
        self.recorder.add("sampled_output_gradients", layer, cell, dy_nO, product)

    def align_output_gradients(self, layer: int, cell: int, dy_nO: Tensor) -> None:
        """Measure the alignments of sampled output gradients.

        Call it as soon as they are known: the step's own weight gradient is added right after.
        """
        if self.alignment is not None:
            stats_of = self.alignment.of_output_gradients
            self.recorder.write("adapter_in_grad", layer, cell, stats_of, layer, cell, dy_nO)


@lru_cache
def _spaced(count: int, most: int, device: torch.device | None = None) -> Tensor:
    """At most ``most`` places among ``count``, evenly spaced from the first to the last."""
    return torch.linspace(0, count - 1, min(most, count), device=device).round().long()


def _rho(x_nD: Tensor, pair: LoraPair, A0_RD: Tensor) -> dict[str, Tensor]:
    """``||dA x|| / ||A0 x||`` over the tokens, Frobenius norms.

    dA is formed first: ``A x - A0 x`` would lose it to rounding.
    """
    return {"rho": (x_nD @ (pair.A_RD - A0_RD).mT).norm() / (x_nD @ A0_RD.mT).norm()}
