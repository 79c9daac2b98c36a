"""Activations and their gradients, read by hooks during a pass; what is computed from a few tokens.

Hooks cannot read the adapter's own output and input gradient in every implementation, so these are
computed from (x, dL/dy, A, B, gamma) on a sample of the tokens, as are rho and the alignments.

Letters: ``K`` cells, ``B`` sequences, ``T`` tokens of a sequence, ``N`` tokens of a cell, ``n``
sampled tokens, ``F`` features (``D`` in, ``O`` out).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from study.adapters.bank import LoraBank, LoraPair
from study.adapters.contraction import Listeners
from study.adapters.inits import generator_for
from study.probes.alignment import Alignment
from study.probes.delta_w import DeltaW
from study.probes.measurements import Measurements, in_backward
from study.probes.sites import TENSORS, Product, SiteSource
from study.probes.statistics import LOST
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
        self._before = _random_state(args[0].device) if runs_first else None

    @torch.no_grad()
    def after(self, module: Any, args: tuple[Any, ...], _: Tensor) -> None:
        """The hook after the module."""
        if self._before is None:
            return
        after = _random_state(args[0].device, self._before)
        kept = dropout(torch.ones_like(args[0]), module.p)
        _random_state(args[0].device, after)
        self.see(kept.reshape(1, -1, kept.shape[-1]))


def _random_state(device: torch.device, new: Tensor | None = None) -> Tensor:
    """The state of the random stream of ``device``, which then gets the ``new`` one."""
    of_cpu = device.type == "cpu"
    streams: Any = torch if of_cpu else torch.get_device_module(device)
    state: Tensor = streams.get_rng_state() if of_cpu else streams.get_rng_state(device)
    if new is not None:
        streams.set_rng_state(new) if of_cpu else streams.set_rng_state(new, device)
    return state


class RealTokens(NamedTuple):
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
    """Measures activations and their gradients. Hooks exist only inside :meth:`watch`.

    ``tokens``: sampled of each cell in every pass. Those of the first pass also give the alignments
    and rho.
    """

    def __init__(
        self, found: Measurements, delta_w: DeltaW, tokens: int, alignment: Alignment | None
    ) -> None:
        self.found, self.delta_w, self.tokens, self.alignment = found, delta_w, tokens, alignment
        self.rho = "rho" in found.stats and "A" in found.wanted
        self.loses = "swallowed" in found.stats and "adapter_out" in found.wanted
        self.passes = 0
        self._last_input: tuple[Tensor, list[dict[str, tuple[Tensor, int]]]] | None = None

    @contextmanager
    def watch(self, real_BT: Tensor | None) -> Iterator[int]:
        """See :meth:`study.probes.NormProbe.watch`."""
        real_K: list[RealTokens | None] = [None] * self.found.cells
        if real_BT is not None:
            chunks = real_BT.bool().chunk(self.found.cells)
            real_K = [self._real_tokens(self.found.world.rows(real, False)) for real in chunks]
        self.passes += 1
        with ExitStack() as hooks:
            for index in range(len(self.found.layers)):
                LayerPass(self, index, real_K).attach(hooks)
            try:
                yield self.passes
            finally:
                self._last_input = None
                self.delta_w.release_all()

    def _real_tokens(self, reals: Sequence[Tensor]) -> RealTokens | None:
        """``reals``: the real tokens of each process, ``[B, T]``. None if there is no padding."""
        if all(real_BT.all() for real_BT in reals):
            return None
        real_N = reals[self.found.world.number].flatten()
        real = real_N.nonzero().flatten().to(self.found.device, non_blocking=True)
        return RealTokens(real, len(real_N), [int(real_BT.sum()) for real_BT in reals])

    def sample(self, x_NF: Tensor, tokens: RealTokens | None) -> Tensor:
        """Evenly spaced real tokens of all processes, the same for every cell: ``[n, F]``
        float32.
        """
        world = self.found.world
        real = tokens and tokens.among(x_NF)
        counts = [len(x_NF)] * world.size if tokens is None or real is None else tokens.counts
        if world.size == 1:
            spaced = _spaced(sum(counts), self.tokens, x_NF.device)
            return x_NF.index_select(0, spaced if real is None else real[spaced]).float()
        spaced = _spaced(sum(counts), self.tokens)
        ends = torch.tensor([0, *accumulate(counts)])
        places = torch.searchsorted(spaced, ends).tolist()  # of each process in the sample
        own = spaced[slice(*places[world.number :][:2])] - ends[world.number]
        own = own.to(x_NF.device, non_blocking=True)
        x_mF = x_NF[own if real is None else real[own]].float()
        return world.joined(x_mF, [end - start for start, end in pairwise(places)])

    def feed_noise(self) -> None:
        """See :meth:`study.probes.NormProbe.feed_noise`."""
        for index, layer in enumerate(self.found.layers):
            stream = generator_for(0, f"{layer.name}/noise")
            x_nD, dy_nO = (
                torch.randn(self.tokens, size, generator=stream).to(
                    self.found.device, non_blocking=True
                )
                for size in (layer.d_in, layer.d_out)
            )
            for cell, pair in enumerate(layer.whole_pairs()):
                product = Product(pair)
                self.found.add("sampled_inputs", index, cell, x_nD, product)
                self.align_inputs(index, cell, x_nD, pair)
                self.found.add("sampled_output_gradients", index, cell, dy_nO, product)
                self.align_output_gradients(index, cell, dy_nO)

    def align_inputs(self, layer: int, cell: int, x_nD: Tensor, pair: LoraPair) -> None:
        """Measure the alignments of sampled inputs, and rho."""
        if self.alignment is not None:
            stats_of = self.alignment.of_inputs
            self.found.write("adapter_out", layer, cell, stats_of, layer, cell, x_nD)
        if self.rho and (A0_RD := self.found.layers[layer].initial_A(cell)) is not None:
            self.found.write("A", layer, cell, _rho, x_nD, pair, A0_RD)

    def align_output_gradients(self, layer: int, cell: int, dy_nO: Tensor) -> None:
        """Measure the alignments of sampled output gradients.

        Call it as soon as they are known: the step's own weight gradient is added right after.
        """
        if self.alignment is not None:
            stats_of = self.alignment.of_output_gradients
            self.found.write("adapter_in_grad", layer, cell, stats_of, layer, cell, dy_nO)

    def input_sums(
        self, x: Tensor, real_K: Sequence[RealTokens | None]
    ) -> list[dict[str, tuple[Tensor, int]]]:
        """Computed once for layers that read the same tensor ``x``: q, k and v; gate and up."""
        if self._last_input is None or self._last_input[0] is not x:
            cells = zip(self.by_cell(x), real_K, strict=True)
            self._last_input = x, [self.sums("inputs", x_ND, tokens) for x_ND, tokens in cells]
        return self._last_input[1]

    def by_cell(self, x: Tensor) -> Tensor:
        """``[K, N, F]``."""
        return x.detach().reshape(self.found.cells, -1, x.shape[-1])

    def sums(
        self, source: SiteSource, x_NF: Tensor, tokens: RealTokens | None
    ) -> dict[str, tuple[Tensor, int]]:
        """For each site, the sums over the real tokens of a cell and the number of elements."""
        real, sums = tokens and tokens.among(x_NF), {}
        for name in self.found.wanted_of(source):
            tensor = TENSORS[source][name](x_NF)
            count = len(x_NF) if real is None else len(real)
            sums[name] = self.found.sums(tensor, real), count * tensor.shape[1]
        return sums


class LayerPass:
    """One layer in one pass: its hooks, and what they keep of it until its backward pass.

    ``real_K``: the real tokens of each cell; None if all are.
    """

    def __init__(
        self, activations: Activations, index: int, real_K: Sequence[RealTokens | None]
    ) -> None:
        self.activations, self.index, self.real_K = activations, index, real_K
        self.found, self.delta_w = activations.found, activations.delta_w
        self.layer = self.found.layers[index]
        self.number, self.is_first = activations.passes, activations.passes == 1
        self._kept: dict[int, Tensor] = {}
        """By cell: what dropout multiplies the sampled inputs by."""

    def attach(self, hooks: ExitStack) -> None:
        """Attach the hooks until ``hooks`` is closed."""
        module, dropout = self.layer.module, self.layer.dropout
        if self.activations.rho or not self.found.wanted.isdisjoint(FORWARD + BACKWARD):
            on_forward = partial(self._of_pass, self._on_forward)
            hooks.callback(module.register_forward_hook(on_forward).remove)
        if isinstance(module, LoraBank) and self.delta_w.takes_products:
            hooks.enter_context(module.listening(self._listeners, self.delta_w.is_wanted))
        if dropout is not None and self.delta_w.lends:
            seen = DropoutSeen(partial(self._on_dropped, 0))
            hooks.callback(dropout.register_forward_pre_hook(seen.before).remove)
            hooks.callback(dropout.register_forward_hook(seen.after).remove)

    def _listeners(self, first: int) -> Listeners:
        """The functions that take the tensors of the cells from ``first`` on."""
        return Listeners(
            partial(self.delta_w.take, self.index, first),
            partial(self._on_dropped, first),
        )

    def _of_pass(self, hook: Callable[..., None], *args: Any) -> None:
        """Call ``hook``. What it enters is of this pass (:meth:`study.probes.NormProbe.forget`)."""
        with self.found.of_pass(self.number):
            hook(*args)

    def _on_forward(self, _: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        if not self.layer.is_on():
            return
        if y.requires_grad and not self.found.wanted.isdisjoint(BACKWARD):
            # Under checkpointing a layer runs twice. Only one of its outputs is in the graph.
            y.register_hook(partial(self._of_pass, self._on_backward, self._kept.copy()))
        if in_backward():
            return  # the second run of a checkpointed layer: its activations are measured already
        x_KND, y_KNO = (self.activations.by_cell(each) for each in (args[0], y))
        input_sums_K = self.activations.input_sums(args[0], self.real_K)
        for cell, pair in enumerate(self.layer.whole_pairs()):
            self._enter(cell, input_sums_K[cell])
            self._enter(cell, self.activations.sums("outputs", y_KNO[cell], self.real_K[cell]))
            if self.activations.rho or self.found.wanted_of("sampled_inputs"):
                x_nD = self._sample(cell, x_KND[cell])
                product = self._measure_inputs(cell, x_nD, pair)
                if self.activations.loses and y.dtype.itemsize < torch.float32.itemsize:
                    y_nO = self._sample(cell, y_KNO[cell])
                    self._measure_lost(cell, x_nD.to(args[0].dtype), y_nO, product)

    def _measure_inputs(self, cell: int, x_nD: Tensor, pair: LoraPair) -> Product:
        product = self.delta_w.product(self.index, cell, pair)
        product = replace(product, kept_nD=self._kept.get(cell))
        self.found.add("sampled_inputs", self.index, cell, x_nD, product)
        if self.is_first:
            self.activations.align_inputs(self.index, cell, x_nD, pair)
        if not self.found.wanted_of("sampled_output_gradients"):
            self.delta_w.release(self.index, cell)
        return product

    @torch.no_grad()
    def _measure_lost(self, cell: int, x_nD: Tensor, y_nO: Tensor, product: Product) -> None:
        """Measure the part of the adapter's output that rounding takes, for ``swallowed``.

        ``x_nD``, ``y_nO``: of the layer. The base's own outputs are computed again: ``2 n D O``.
        """
        if (base := self.layer.base()) is not None and not self.layer.variant:
            added_nO = y_nO - base(x_nD).float()
            self.found.write("adapter_out", self.index, cell, _lost, x_nD, added_nO, product)

    def _on_backward(self, kept: Mapping[int, Tensor], dy: Tensor) -> None:
        dy_KNO = self.activations.by_cell(dy)
        for cell, pair in enumerate(self.layer.whole_pairs()):
            tokens = self.real_K[cell]
            self._enter(cell, self.activations.sums("output_gradients", dy_KNO[cell], tokens))
            if self.found.wanted_of("sampled_output_gradients"):
                dy_nO = self._sample(cell, dy_KNO[cell])
                if self.is_first:
                    self.activations.align_output_gradients(self.index, cell, dy_nO)
                product = self.delta_w.product(self.index, cell, pair)
                self.delta_w.release(self.index, cell)
                product = replace(product, kept_nD=kept.get(cell))
                self.found.add("sampled_output_gradients", self.index, cell, dy_nO, product)

    def _on_dropped(self, first: int, kept_kND: Tensor) -> None:
        if not in_backward():
            for cell, kept_ND in enumerate(kept_kND, start=first):
                self._kept[cell] = self._sample(cell, kept_ND)

    def _sample(self, cell: int, x_NF: Tensor) -> Tensor:
        return self.activations.sample(x_NF, self.real_K[cell])

    def _enter(self, cell: int, sums: Mapping[str, tuple[Tensor, int]]) -> None:
        for site, (scaled, count) in sums.items():
            self.found.enter(site, self.index, cell, scaled, count)


@lru_cache
def _spaced(count: int, most: int, device: torch.device | None = None) -> Tensor:
    """At most ``most`` places among ``count``, evenly spaced from the first to the last."""
    return torch.linspace(0, count - 1, min(most, count), device=device).round().long()


def _lost(x_nD: Tensor, added_nO: Tensor, product: Product) -> dict[str, Tensor]:
    d_nO = product.of_inputs(x_nD.float())
    return {LOST: torch.sum(d_nO * (d_nO - added_nO))}


def _rho(x_nD: Tensor, pair: LoraPair, A0_RD: Tensor) -> dict[str, Tensor]:
    """``||dA x|| / ||A0 x||`` over the tokens, Frobenius norms.

    dA is formed first: ``A x - A0 x`` would lose it to rounding.
    """
    return {"rho": (x_nD @ (pair.A_RD - A0_RD).mT).norm() / (x_nD @ A0_RD.mT).norm()}
