"""Activations and their gradients, from hooks; and statistics of a sample of the tokens.

Hooks cannot read the adapter's own output and input gradient in every implementation. So these are
computed from (x, dL/dy, A, B, gamma) on a sample of the tokens, as are rho, r_parts and alignments.

Letters: ``K`` cells, ``B`` sequences, ``T`` tokens of a sequence, ``N`` tokens of a cell, ``n``
sampled tokens, ``F`` features (``D`` in, ``O`` out).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pad_sequence

from study.adapters.bank import LoraBank, LoraPair, Stack
from study.adapters.contraction import Listeners
from study.adapters.inits import generator_for
from study.probes.alignment import Alignment
from study.probes.delta_w import DeltaW
from study.probes.layers import on_gradient
from study.probes.measurements import Measurements, in_backward
from study.probes.sites import TENSORS, Product
from study.probes.spans import Spans
from study.probes.statistics import LOST, MOVED, OTHERS, PARTS, START
from study.vocabulary.quantities import BACKWARD, FORWARD


def _random_state(device: torch.device, new: Tensor | None = None) -> Tensor:
    """The state of the random stream of ``device``, which then gets the ``new`` one."""
    of_cpu = device.type == "cpu"
    streams: Any = torch if of_cpu else torch.get_device_module(device)
    state: Tensor = streams.get_rng_state() if of_cpu else streams.get_rng_state(device)
    if new is not None:
        streams.set_rng_state(new) if of_cpu else streams.set_rng_state(new, device)
    return state


class Sample(NamedTuple):
    """The sampled tokens of a batch that processes divide: this one's, as ``real_BT``, and a
    function that puts the rows ``[n, F]`` of all processes together."""

    sampled_BT: Tensor
    joined: Callable[[Tensor], Tensor]


class Rows:
    """Which rows ``[K, N, F]`` count: ``real_KN`` (None: all), ``count_K``; and ``sampled_K``."""

    def __init__(self, device: torch.device, real_KN: Tensor, sampled_KN: Tensor) -> None:
        places = [sampled_N.nonzero().flatten() for sampled_N in sampled_KN]
        self.count_K: list[int] = real_KN.sum(1).tolist()
        self.sampled_K = [len(of_cell) for of_cell in places]
        # A cell with fewer real tokens repeats a row, which does not count.
        firsts_K1 = torch.arange(len(real_KN))[:, None] * real_KN.shape[1]
        self._places_Kn = (pad_sequence(places, True) + firsts_K1).to(device, non_blocking=True)
        sampled_Kn = torch.arange(max(self.sampled_K)) < torch.tensor(self.sampled_K)[:, None]
        self.real_KN, self._sampled_Kn = (
            None if real.all() else real.to(device, non_blocking=True)
            for real in (real_KN, sampled_Kn)
        )
        self._of_stacks: dict[int, Tensor] = {}

    def sampled(self, stack: Stack) -> Tensor | None:
        """The rows ``[k, n]`` of the sample that count, the same tensor for all layers; None if all
        do."""
        if self._sampled_Kn is None:
            return None
        return self._of_stacks.setdefault(stack.first, self._sampled_Kn[stack.each])

    def sample(self, x_kNF: Tensor, first: int = 0) -> Tensor:
        """The sampled rows of the k cells from ``first`` on, ``[k, n, F]`` float32."""
        k, N, F = x_kNF.shape
        places_kn = self._places_Kn[first : first + k]
        places_N = (places_kn - first * N if first else places_kn).flatten()
        x_NF = x_kNF.detach().reshape(-1, F).index_select(0, places_N).float()
        return x_NF.view(k, places_kn.shape[1], F)


class Activations:
    """Measures activations and their gradients, with hooks inside :meth:`watch`."""

    def __init__(
        self,
        found: Measurements,
        delta_w: DeltaW,
        spans: Spans,
        tokens: int,
        alignment: Alignment | None,
    ) -> None:
        self.found, self.delta_w, self.spans = found, delta_w, spans
        self.tokens, self.alignment = tokens, alignment
        self.rho = "rho" in found.stats and "A" in found.wanted
        self.parts = "r_parts" in found.stats
        self.loses = "swallowed" in found.stats and "adapter_out" in found.wanted
        self.passes = 0
        self.joined: Callable[[Tensor], Tensor] = lambda x_nF: x_nF
        self._last_input: tuple[Tensor, dict[str, list[int]], Tensor | None] | None = None

    @contextmanager
    def watch(self, real_BT: Tensor | None, sample: Sample | None) -> Iterator[int]:
        rows = self._rows_of(real_BT, sample)
        if sample is not None:
            self.joined = sample.joined
        self.passes += 1
        with ExitStack() as hooks:
            for index in range(len(self.found.layers)):
                LayerPass(self, index, rows).attach(hooks)
            try:
                yield self.passes
            finally:
                self._last_input = None

    def _rows_of(self, real_BT: Tensor | None, sample: Sample | None) -> Callable[[int], Rows]:
        """The function of one pass that returns the :class:`Rows` of ``[K, N, F]``, from N.

        In a few families (Zaya) a layer reads other rows than the tokens. Then all of them count.
        """
        cells, device = self.found.cells, self.found.device

        @cache
        def rows(N: int) -> Rows:
            if real_BT is None or real_BT.numel() != cells * N:
                real_KN, of_sample = torch.ones(cells, N, dtype=torch.bool), None
            else:
                real_KN, of_sample = real_BT.bool().cpu().reshape(cells, N), sample
            if of_sample is None:
                return Rows(device, real_KN, spaced(real_KN, self.tokens))
            return Rows(device, real_KN, of_sample.sampled_BT.reshape(cells, N))

        return rows

    def feed_noise(self) -> None:
        for index, layer in enumerate(self.found.layers):
            stream = generator_for(0, f"{layer.name}/noise")
            x_nD, dy_nO = (
                torch.randn(self.tokens, size, generator=stream).to(
                    self.found.device, non_blocking=True
                )
                for size in (layer.d_in, layer.d_out)
            )
            for stack in layer.stacks(whole=True):
                product = Product(stack)
                self.found.add("sampled_inputs", index, stack, x_nD, product)
                self.found.add("sampled_output_gradients", index, stack, dy_nO, product)
                for cell, pair in stack.pairs():
                    self.align_inputs(index, cell, x_nD, pair)
                    self.align_output_gradients(index, cell, dy_nO)

    def align_inputs(self, layer: int, cell: int, x_nD: Tensor, pair: LoraPair) -> None:
        if self.alignment is not None:
            of = self.alignment.of, "A", layer, cell, self.joined(x_nD)
            self.found.write("adapter_out", layer, cell, *of)
        if self.parts:
            self.found.write("adapter_out", layer, cell, _parts, x_nD, pair)

    def measure_motion(self, layer: int, cell: int, x_nD: Tensor, pair: LoraPair) -> None:
        if self.rho and (A0_RD := self.found.layers[layer].initial_A(cell)) is not None:
            self.found.write("A", layer, cell, _rho, x_nD, pair, A0_RD)

    def align_output_gradients(self, layer: int, cell: int, dy_nO: Tensor) -> None:
        """Measure the alignments of output gradients before the step's weight gradient is added."""
        if self.alignment is not None:
            of = self.alignment.of, "B", layer, cell, self.joined(dy_nO)
            self.found.write("adapter_in_grad", layer, cell, *of)

    def inputs(self, x: Tensor, rows: Rows) -> tuple[dict[str, list[int]], Tensor | None]:
        if self._last_input is None or self._last_input[0] is not x:
            x_KND = self.by_cell(x)
            wanted = self.rho or self.found.wanted_of("sampled_inputs")
            sample = rows.sample(x_KND) if wanted else None
            self._last_input = x, self.sums("inputs", x_KND, rows), sample
        return self._last_input[1:]

    def by_cell(self, x: Tensor) -> Tensor:
        return x.detach().reshape(self.found.cells, -1, x.shape[-1])

    def sums(self, source: str, x_KNF: Tensor, rows: Rows) -> dict[str, list[int]]:
        if self.found.adder.waits and source == "outputs":
            x_KNF = x_KNF.clone()  # a few models change them in place
        return {
            name: self.found.sums(TENSORS[source][name](x_KNF), rows.real_KN)
            for name in self.found.wanted_of(source)
        }


class LayerPass:
    """One layer in one pass: its hooks, and the tensors they keep until its backward pass."""

    def __init__(self, activations: Activations, index: int, rows: Callable[[int], Rows]) -> None:
        self.activations, self.index, self.rows = activations, index, rows
        self.found, self.delta_w = activations.found, activations.delta_w
        self.spans = activations.spans
        self.layer = self.found.layers[index]
        self.number, self.is_first = activations.passes, activations.passes == 1
        self._kept: dict[int, Tensor] = {}
        """By first cell: what dropout multiplies the sampled inputs by."""
        self._random_state: Tensor | None = None

    def attach(self, hooks: ExitStack) -> None:
        module, dropout = self.layer.module, self.layer.dropout
        reads_inputs = self.activations.rho or self.spans.shares
        if reads_inputs or not self.found.wanted.isdisjoint(FORWARD + BACKWARD):
            on_forward = partial(self._of_pass, self._on_forward)
            hooks.callback(module.register_forward_hook(on_forward).remove)
        if isinstance(module, LoraBank):
            hooks.enter_context(module.listening(self._listeners, self.delta_w.is_wanted))
        if dropout is not None:
            hooks.callback(dropout.register_forward_pre_hook(self._before_dropout).remove)
            hooks.callback(dropout.register_forward_hook(self._after_dropout).remove)

    def _listeners(self, first: int) -> Listeners:
        take = partial(self.delta_w.take, self.index, first)
        return Listeners(take, partial(self._on_dropped, first))

    def _of_pass(self, hook: Callable[..., None], *args: Any) -> None:
        """Call ``hook``. What it enters is of this pass (:meth:`study.probes.NormProbe.forget`)."""
        with self.found.of_pass(self.number):
            hook(*args)

    def _on_forward(self, _: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        if not self.layer.is_on():
            return
        # Under checkpointing a layer runs twice. Only one of its outputs is in the graph.
        if y.requires_grad and not self.found.wanted.isdisjoint(BACKWARD):
            on_gradient(y, partial(self._of_pass, self._on_backward, self._kept.copy()))
        if y.requires_grad and self.spans.shares:
            on_gradient(y, partial(self._keep_gradient, args[0]))
        if in_backward():
            return  # the second run of a checkpointed layer: its activations are measured already
        y_KNO = self.activations.by_cell(y)
        rows = self.rows(y_KNO.shape[1])
        input_sums, sample_KnD = self.activations.inputs(args[0], rows)
        self._enter(input_sums, rows, self.layer.d_in)
        self._enter(self.activations.sums("outputs", y_KNO, rows), rows, self.layer.d_out)
        if sample_KnD is None:
            return
        for stack in self.layer.stacks(whole=True):
            x_knD = sample_KnD[stack.each]
            product = self._measure_inputs(stack, rows, x_knD)
            if self.activations.loses and y.dtype.itemsize < torch.float32.itemsize:
                y_knO = rows.sample(y_KNO[stack.each], stack.first)
                self._measure_lost(rows, x_knD.to(args[0].dtype), y_knO, product)

    def _measure_inputs(self, stack: Stack, rows: Rows, x_knD: Tensor) -> Product:
        first = stack.first
        product = Product(stack, kept_knD=self._kept.get(first))
        self._add("sampled_inputs", rows, x_knD, product)
        for cell, pair in stack.pairs():
            x_nD = x_knD[cell - first, : rows.sampled_K[cell]]
            self.activations.measure_motion(self.index, cell, x_nD, pair)
            if self.is_first:
                self.activations.align_inputs(self.index, cell, x_nD, pair)
        return product

    @torch.no_grad()
    def _measure_lost(self, rows: Rows, x_knD: Tensor, y_knO: Tensor, product: Product) -> None:
        """Measure the part of the adapter's output that rounding loses, for ``swallowed``.
        ``x_knD``, ``y_knO``: of the layer. The base's own outputs are computed again."""
        if (base := self.layer.base()) is not None and not self.layer.variant:
            added_knO, stack = y_knO - base(x_knD).float(), product.stack
            parts = x_knD, added_knO, product, rows.sampled(stack)
            self.found.write("adapter_out", self.index, stack.first, _lost, *parts)

    def _on_backward(self, kept: Mapping[int, Tensor], dy: Tensor) -> None:
        dy_KNO = self.activations.by_cell(dy)
        rows = self.rows(dy_KNO.shape[1])
        sums = self.activations.sums("output_gradients", dy_KNO, rows)
        self._enter(sums, rows, self.layer.d_out)
        if not self.found.wanted_of("sampled_output_gradients"):
            return
        sample_KnO = rows.sample(dy_KNO)
        for stack in self.layer.stacks(whole=True):
            dy_knO = sample_KnO[stack.each]
            for cell in range(stack.each.start, stack.each.stop) if self.is_first else ():
                dy_nO = sample_KnO[cell, : rows.sampled_K[cell]]
                self.activations.align_output_gradients(self.index, cell, dy_nO)
            product = Product(stack, kept_knD=kept.get(stack.first))
            self._add("sampled_output_gradients", rows, dy_knO, product)

    def _keep_gradient(self, x: Tensor, dy: Tensor) -> None:
        x_KND, dy_KNO = (self.activations.by_cell(each) for each in (x, dy))
        self.spans.add(self.number, self.index, x_KND, dy_KNO)

    def _before_dropout(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        runs_first = module.training and not in_backward()  # not again, under checkpointing
        self._random_state = _random_state(args[0].device) if runs_first else None

    @torch.no_grad()
    def _after_dropout(self, module: Any, args: tuple[Any, ...], _: Tensor) -> None:
        """The mask of PEFT's module, 0 or ``1 / (1 - p)``, ``[1, N, D]``, is drawn again from the
        state of the random stream before the module ran. Afterwards the stream continues as if
        nothing had been drawn."""
        if self._random_state is None:
            return
        after = _random_state(args[0].device, self._random_state)
        kept = dropout(torch.ones_like(args[0]), module.p)
        _random_state(args[0].device, after)
        self._on_dropped(0, kept.reshape(1, -1, kept.shape[-1]))

    def _on_dropped(self, first: int, kept_kND: Tensor) -> None:
        if not in_backward():
            self._kept[first] = self.rows(kept_kND.shape[1]).sample(kept_kND, first)

    def _add(self, source: str, rows: Rows, x_knF: Tensor, product: Product) -> None:
        stack = product.stack
        rows_k, real_kn = rows.sampled_K[stack.each], rows.sampled(stack)
        self.found.add(source, self.index, stack, x_knF, product, real_kn=real_kn, rows_k=rows_k)

    def _enter(self, sums: Mapping[str, list[int]], rows: Rows, features: int) -> None:
        for site, of_chunks in sums.items():
            count_K = [count * features for count in rows.count_K]
            self.found.enter(site, self.index, 0, of_chunks, count_K)


def spaced(real_KN: Tensor, most: int) -> Tensor:
    """At most ``most`` of each cell's rows that count, evenly spaced from the first to the last."""
    sampled_KN = torch.zeros_like(real_KN)
    for sampled_N, real_N in zip(sampled_KN, real_KN, strict=True):
        places = real_N.nonzero().flatten()
        each = torch.linspace(0, len(places) - 1, min(most, len(places))).round().long()
        sampled_N[places[each]] = True
    return sampled_KN


def _lost(
    x_knD: Tensor, added_knO: Tensor, product: Product, real_kn: Tensor | None
) -> dict[str, Tensor]:
    d_knO = product.of_inputs(x_knD.float())
    lost_kn = (d_knO * (d_knO - added_knO)).sum(-1)
    return {LOST: (lost_kn if real_kn is None else lost_kn.where(real_kn, 0.0)).sum(-1)}


def _rho(x_nD: Tensor, pair: LoraPair, A0_RD: Tensor) -> dict[str, Tensor]:
    """dA is computed first, because ``A x - A0 x`` would lose it to rounding."""
    moved, start = (x_nD @ A.mT for A in (pair.A_RD - A0_RD, A0_RD))
    return {MOVED: moved.norm().double().square(), START: start.norm().double().square()}


def _parts(x_nD: Tensor, pair: LoraPair) -> dict[str, Tensor]:
    """r_sign of the output as it is, over the tokens. The output is a sum of R parts ``B_k A_k x``.

    ``E |out|^2 = R (R - 1 + r_parts) c``, where R ``r_parts c`` is the sum of the parts' squares.
    NaN at rank 1.
    """
    h_nR = x_nD @ pair.A_RD.mT
    own = torch.dot(h_nR.square().sum(0), pair.B_OR.square().sum(0))
    others = (h_nR @ pair.B_OR.mT).square().sum() - own
    return {PARTS: (pair.A_RD.shape[0] - 1) * own, OTHERS: others}
