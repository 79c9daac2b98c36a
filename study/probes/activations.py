"""Activations and their gradients, read by hooks during a pass.

Letters: ``K`` cells, ``B`` sequences, ``T`` tokens of a sequence, ``N`` tokens of a cell, ``F``
features (``D`` in, ``O`` out).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from study.probes.delta_w import DeltaW
from study.probes.recorder import Recorder, in_backward
from study.probes.sampled import SampledTokens
from study.probes.sites import TENSORS, Source
from study.vocabulary.quantities import BACKWARD, FORWARD


class Rows(NamedTuple):
    """The indices of the real tokens among the ``[N, F]`` of a cell, and the number N.

    ``counts``: how many real tokens each process has.
    """

    real: Tensor
    tokens: int
    counts: Sequence[int]

    def among(self, x_NF: Tensor) -> Tensor | None:
        """The indices in ``x``; None if its rows are not the tokens, so that all of them count.

        In a few families (Zaya) a layer reads other rows, such as one of each sequence.
        """
        return self.real if self.tokens == len(x_NF) else None


class Activations:
    """Hooks on every adapted layer. They are attached only inside :meth:`watch`.

    Sampled tokens are taken from the first pass only.
    """

    def __init__(self, recorder: Recorder, sampled: SampledTokens, delta_w: DeltaW) -> None:
        self.recorder, self.sampled, self.delta_w = recorder, sampled, delta_w
        self._first_pass = True
        self._last_input: tuple[Tensor, list[dict[str, tuple[Tensor, int]]]] | None = None

    @contextmanager
    def watch(self, real_BT: Tensor | None) -> Iterator[None]:
        """See :meth:`study.probes.NormProbe.watch`."""
        rows_K: list[Rows | None] = [None] * self.recorder.cells
        if real_BT is not None:
            chunks = real_BT.bool().chunk(self.recorder.cells)
            rows_K = [self._rows(self.recorder.world.rows(real, False)) for real in chunks]
        wanted = not self.recorder.wanted.isdisjoint(FORWARD + BACKWARD) or self.sampled.rho
        hooks = [
            layer.module.register_forward_hook(partial(self._on_forward, index, rows_K))
            for index, layer in enumerate(self.recorder.layers)
            if wanted
        ]
        try:
            with self.delta_w.watch():
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self._last_input = None
        self._first_pass = False

    def _rows(self, reals: Sequence[Tensor]) -> Rows | None:
        """``reals``: the real tokens of each process, ``[B, T]``. None if there is no padding."""
        if all(real_BT.all() for real_BT in reals):
            return None
        real_N = reals[self.recorder.world.number].flatten()
        real = real_N.nonzero().flatten().to(self.recorder.device, non_blocking=True)
        return Rows(real, len(real_N), [int(real_BT.sum()) for real_BT in reals])

    def _on_forward(
        self,
        layer: int,
        rows_K: list[Rows | None],
        _: nn.Module,
        args: tuple[Tensor, ...],
        y: Tensor,
    ) -> None:
        recorder, adapted = self.recorder, self.recorder.layers[layer]
        if not adapted.is_on():
            return
        if y.requires_grad and not recorder.wanted.isdisjoint(BACKWARD):
            # Under checkpointing a layer runs twice. Only one of its outputs is in the graph.
            y.register_hook(partial(self._on_backward, layer, rows_K, self._first_pass))
        if in_backward():
            return  # the second run of a checkpointed layer: its activations are measured already
        x_KND = args[0].detach().reshape(recorder.cells, -1, args[0].shape[-1])
        y_KNO = y.detach().reshape(recorder.cells, -1, y.shape[-1])
        input_sums_K = self._input_sums(args[0], x_KND, rows_K)
        for cell, (rows, pair) in enumerate(zip(rows_K, adapted.whole_pairs(), strict=True)):
            self._enter(layer, cell, input_sums_K[cell])
            self._enter(layer, cell, self._sums("outputs", y_KNO[cell], rows))
            if self._first_pass and self.sampled.need_inputs:
                x_nD = self._sample(x_KND[cell], rows)
                product = self.delta_w.product(layer, cell, pair)
                self.sampled.feed_inputs(layer, cell, x_nD, product)
                if not self.sampled.need_output_gradients:
                    self.delta_w.release(layer, cell)

    def _on_backward(
        self, layer: int, rows_K: list[Rows | None], first_pass: bool, dy: Tensor
    ) -> None:
        dy_KNO = dy.reshape(self.recorder.cells, -1, dy.shape[-1])
        pairs = self.recorder.layers[layer].whole_pairs()
        for cell, (rows, pair) in enumerate(zip(rows_K, pairs, strict=True)):
            self._enter(layer, cell, self._sums("output_gradients", dy_KNO[cell], rows))
            if first_pass and self.sampled.need_output_gradients:
                dy_nO = self._sample(dy_KNO[cell], rows)
                product = self.delta_w.product(layer, cell, pair)
                self.sampled.feed_output_gradients(layer, cell, dy_nO, product)
                self.delta_w.release(layer, cell)

    def _sample(self, x_NF: Tensor, rows: Rows | None) -> Tensor:
        real = rows and rows.among(x_NF)
        if rows is None or real is None:
            return self.sampled.of(x_NF, None, [len(x_NF)] * self.recorder.world.size)
        return self.sampled.of(x_NF, real, rows.counts)

    def _input_sums(
        self, x: Tensor, x_KND: Tensor, rows_K: list[Rows | None]
    ) -> list[dict[str, tuple[Tensor, int]]]:
        """Computed once for layers that read the same tensor ``x``: q, k and v; gate and up."""
        if self._last_input is None or self._last_input[0] is not x:
            cells = zip(x_KND, rows_K, strict=True)
            self._last_input = x, [self._sums("inputs", x_ND, rows) for x_ND, rows in cells]
        return self._last_input[1]

    def _sums(
        self, source: Source, x_NF: Tensor, rows: Rows | None
    ) -> dict[str, tuple[Tensor, int]]:
        """For each site, the sums over the real tokens of a cell and the number of elements."""
        real, sums = rows and rows.among(x_NF), {}
        for name in self.recorder.wanted_of(source):
            tensor = TENSORS[source][name](x_NF)
            count = len(x_NF) if real is None else len(real)
            sums[name] = self.recorder.sums(tensor, real), count * tensor.shape[1]
        return sums

    def _enter(self, layer: int, cell: int, sums: dict[str, tuple[Tensor, int]]) -> None:
        for site, (scaled, count) in sums.items():
            self.recorder.enter(site, layer, cell, scaled, count)
