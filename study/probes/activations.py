"""Activations and their gradients, read by hooks during a pass; what is computed from a few tokens.

Hooks cannot read the adapter's own output and input gradient in every implementation, so these are
computed from (x, dL/dy, A, B, gamma) on a sample of the tokens, as are rho and the alignments.

Letters: ``K`` cells, ``B`` sequences, ``T`` tokens of a sequence, ``N`` tokens of a cell, ``n``
sampled tokens, ``F`` features (``D`` in, ``O`` out).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.hooks import RemovableHandle

from study.adapters.bank import LoraBank, LoraPair
from study.adapters.contraction import Shows
from study.adapters.inits import generator_for
from study.probes.alignment import Alignment
from study.probes.delta_w import DeltaW
from study.probes.recorder import Recorder, in_backward
from study.probes.sites import TENSORS, Product, Source
from study.vocabulary.quantities import BACKWARD, FORWARD


class DropoutSeen:
    """Two hooks on a dropout module, which call ``see`` with what its inputs are multiplied by.

    That is 0 or ``1 / (1 - p)``, ``[1, N, D]``. It is drawn again from the state that the random
    stream had before the module ran, and the stream goes on as if nothing had been drawn.
    """

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        self.see = see
        self._before: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The hook before the module."""
        runs_first = module.training and not in_backward()  # not again, under checkpointing
        self._before = _stream(args[0].device).get_rng_state() if runs_first else None

    @torch.no_grad()
    def after(self, module: Any, args: tuple[Any, ...], _: Tensor) -> None:
        """The hook after the module."""
        if self._before is None:
            return
        stream = _stream(args[0].device)
        after = stream.get_rng_state()
        stream.set_rng_state(self._before)
        kept = dropout(torch.ones_like(args[0]), module.p)
        stream.set_rng_state(after)
        self.see(kept.reshape(1, -1, kept.shape[-1]))


def _stream(device: torch.device) -> Any:
    """Where torch keeps the state of a device's random stream."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


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

    Tokens are sampled in every pass. Those of the first one also give the alignments and rho.
    """

    def __init__(self, recorder: Recorder, sampled: SampledTokens, delta_w: DeltaW) -> None:
        self.recorder, self.sampled, self.delta_w = recorder, sampled, delta_w
        self._first_pass = True
        self._last_input: tuple[Tensor, list[dict[str, tuple[Tensor, int]]]] | None = None
        self._z: dict[tuple[int, int], Tensor] = {}
        """By layer and cell: ``gamma A x`` of the sampled tokens, if the pass computes it."""
        self._waiting: dict[tuple[int, int], tuple[Tensor, Product]] = {}
        """By layer and cell: sampled output gradients until the pass computes ``gamma B^T dy``."""
        self._kept: dict[int, dict[int, Tensor]] = {}
        """By layer and cell: the factors that dropout multiplies the sampled inputs by."""

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
        hooks += self._dropout_hooks(rows_K)
        try:
            with self._seeing_products(rows_K):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self._last_input, self._z, self._waiting, self._kept = None, {}, {}, {}
            self.delta_w.release_all()
        self._first_pass = False

    @contextmanager
    def _seeing_products(self, rows_K: list[Rows | None]) -> Iterator[None]:
        """Inside, the probe gets products of the pass, instead of computing them again."""
        with ExitStack() as stack:
            for index, layer in enumerate(self.recorder.layers):
                if self.delta_w.takes_products and isinstance(layer.module, LoraBank):
                    shows_of = partial(self._shows, index, rows_K)
                    needs_products = self.delta_w.is_wanted
                    stack.enter_context(layer.module.showing(shows_of, needs_products))
            yield

    def _shows(self, layer: int, rows_K: list[Rows | None], first: int) -> Shows:
        """The functions that take the products of a layer for the cells from ``first`` on."""
        return Shows(
            partial(self.delta_w.take, layer, first),
            partial(self._on_hidden, layer, rows_K, first),
            partial(self._on_hidden_gradient, layer, rows_K, first),
            partial(self._on_dropped, layer, rows_K, first),
        )

    def _dropout_hooks(self, rows_K: list[Rows | None]) -> list[RemovableHandle]:
        """On the dropout of PEFT's layers."""
        hooks = []
        for index, layer in enumerate(self.recorder.layers):
            if layer.dropout is not None and self.delta_w.lends:
                seen = DropoutSeen(partial(self._on_dropped, index, rows_K, 0))
                hooks.append(layer.dropout.register_forward_pre_hook(seen.before))
                hooks.append(layer.dropout.register_forward_hook(seen.after))
        return hooks

    def _on_dropped(
        self, layer: int, rows_K: list[Rows | None], first: int, kept_kND: Tensor
    ) -> None:
        if not in_backward():
            for cell, kept_ND in enumerate(kept_kND, start=first):
                kept_nD = self._sample(kept_ND, rows_K[cell])
                self._kept.setdefault(layer, {})[cell] = kept_nD

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
        kept = self._kept.get(layer, {})
        if y.requires_grad and not recorder.wanted.isdisjoint(BACKWARD):
            # Under checkpointing a layer runs twice. Only one of its outputs is in the graph.
            y.register_hook(
                partial(self._on_backward, layer, rows_K, kept.copy(), self._first_pass)
            )
        if in_backward():
            return  # the second run of a checkpointed layer: its activations are measured already
        x_KND = args[0].detach().reshape(recorder.cells, -1, args[0].shape[-1])
        y_KNO = y.detach().reshape(recorder.cells, -1, y.shape[-1])
        input_sums_K = self._input_sums(args[0], x_KND, rows_K)
        for cell, (rows, pair) in enumerate(zip(rows_K, adapted.whole_pairs(), strict=True)):
            self._enter(layer, cell, input_sums_K[cell])
            self._enter(layer, cell, self._sums("outputs", y_KNO[cell], rows))
            if self.sampled.need_inputs:
                x_nD = self._sample(x_KND[cell], rows)
                product = self.delta_w.product(layer, cell, pair)
                product = replace(product, z_nR=self._z.get((layer, cell)), kept_nD=kept.get(cell))
                self.sampled.feed_inputs(layer, cell, x_nD, product)
                if self._first_pass:
                    self.sampled.align_inputs(layer, cell, x_nD, pair)
                if not self.sampled.need_output_gradients:
                    self.delta_w.release(layer, cell)

    def _on_backward(
        self,
        layer: int,
        rows_K: list[Rows | None],
        kept: dict[int, Tensor],
        first_pass: bool,
        dy: Tensor,
    ) -> None:
        dy_KNO = dy.reshape(self.recorder.cells, -1, dy.shape[-1])
        pairs = self.recorder.layers[layer].whole_pairs()
        for cell, (rows, pair) in enumerate(zip(rows_K, pairs, strict=True)):
            self._enter(layer, cell, self._sums("output_gradients", dy_KNO[cell], rows))
            if self.sampled.need_output_gradients:
                dy_nO = self._sample(dy_KNO[cell], rows)
                if first_pass:
                    self.sampled.align_output_gradients(layer, cell, dy_nO)
                product = replace(self.delta_w.product(layer, cell, pair), kept_nD=kept.get(cell))
                self.delta_w.release(layer, cell)
                if (layer, cell) in self._z:  # gamma B^T dy comes next
                    self._waiting[layer, cell] = dy_nO, product
                else:
                    self.sampled.feed_output_gradients(layer, cell, dy_nO, product)

    def _on_hidden(self, layer: int, rows_K: list[Rows | None], first: int, z_kNR: Tensor) -> None:
        is_repeated = in_backward()  # the second run of a checkpointed layer
        if not is_repeated and z_kNR.dtype == torch.float32:
            for cell, z_NR in enumerate(z_kNR.detach(), start=first):
                self._z[layer, cell] = self._sample(z_NR, rows_K[cell])

    def _on_hidden_gradient(
        self, layer: int, rows_K: list[Rows | None], first: int, dz_kNR: Tensor
    ) -> None:
        for cell, dz_NR in enumerate(dz_kNR, start=first):
            if (layer, cell) in self._waiting:
                dy_nO, product = self._waiting.pop((layer, cell))
                product = replace(product, dz_nR=self._sample(dz_NR, rows_K[cell]))
                self.sampled.feed_output_gradients(layer, cell, dy_nO, product)

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
