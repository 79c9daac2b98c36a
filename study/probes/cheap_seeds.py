"""Cheap seeds: any number of draws of A at steps 0 and 1 from one pass through the model for each.

While B = 0 an adapter does nothing, so a layer's inputs x and output gradients dL/dy are those of the base, whatever
its rank, gamma and A. Captured once, they drive the adapters of each layer alone: the same banks, the same optimizer
and the same probe as in training, at the cost of the adapters only.

- Step 0 is exact: gradients, updates and ``descent`` are those of the real run with the same A.
- At step 1 B has moved by one update. ``B`` and ``delta_w`` are exact still; what meets x or dL/dy (``adapter_out``,
  ``adapter_in_grad``, gradients, ``descent``) is taken at the base's own, off by a relative amount of order of the
  learning rate: the limit that predictions are about. That is why there is no step 2.

What it saves, on SmolLM2 with all 210 linears, 126 tokens, both steps, one core: 0.8 s a draw against 4.4 s of training
at rank 4, 1.4 against 5.3 at 64, 10 against 15 at 512, where forming ``delta_w`` is most of either. What it holds:
``N (D + O)`` floats per layer and step (147 MiB there).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from study.adapters.bank import AdapterSpec, LoraBank
from study.probes.layers import adapted_layers
from study.probes.norm_probe import NormProbe
from study.sites import USUAL

SITES = (
    *("adapter_in", "adapter_out", "layer_out_grad", "adapter_in_grad", "A", "B", "delta_w"),
    *("A_grad", "B_grad", "A_update", "B_update", "adapter_grad", "adapter_update"),
)
"""All that can be measured without the frozen weights: every site but ``layer_out``."""

MakeOptimizer = Callable[[Sequence[Tensor], Sequence[Tensor]], Optimizer]
"""From the A's and the B's of one cell: ``partial(build_optimizer, config.optimizer)``."""


@dataclass(frozen=True)
class Captured:
    """One layer's real tokens of one step: ``x_ND`` its inputs, ``dy_NO`` the gradients of the step's mean loss with
    respect to its outputs, float32."""

    layer: str
    x_ND: Tensor
    dy_NO: Tensor


class Capture:
    """Records x and dL/dy of every adapted layer, for one cell whose trained factor is still 0.

    ``watch`` is that of a probe: give it to :meth:`study.training.Fold.backward`, or put it around forward and
    backward of each micro-batch in a loop of your own; then :meth:`take` what the step's passes have left.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = adapted_layers(model)
        if len(self.layers[0].pairs()) != 1:
            raise ValueError("a capture is of one cell: x and dL/dy are the same for all while B = 0")
        self._seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.layers]

    @contextmanager
    def watch(self, real_BT: Tensor | None = None) -> Iterator[None]:
        """Record the forward and backward pass inside; ``real_BT`` is true on real tokens (None: all are)."""
        rows = None if real_BT is None else real_BT.bool().flatten().nonzero().flatten()
        hooks = [
            layer.module.register_forward_hook(partial(self._on_forward, index, rows))
            for index, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> list[Captured]:
        """Every layer's tokens since the last call, micro-batches one after the other."""
        found = []
        for layer, parts in zip(self.layers, self._seen, strict=True):
            x, dy = (torch.cat(each) for each in zip(*parts, strict=True))
            found.append(Captured(layer.name, x, dy))
        self._seen = [[] for _ in self.layers]
        return found

    def _on_forward(self, index: int, rows: Tensor | None, _: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        y.register_hook(partial(self._on_backward, index, rows, args[0].detach()))

    def _on_backward(self, index: int, rows: Tensor | None, x: Tensor, dy: Tensor) -> None:
        real = [part.reshape(-1, part.shape[-1]) for part in (x, dy)]
        if rows is not None:
            real = [part[rows.to(part.device)] for part in real]
        self._seen[index].append((real[0].float(), real[1].float()))


def cheap_seeds(
    steps: Sequence[Sequence[Captured]],
    specs: Sequence[AdapterSpec],
    optimizer: MakeOptimizer,
    *,
    sites: Sequence[str] = SITES,
    stats: Sequence[str] = USUAL,
    tokens: int = 128,
) -> Iterator[tuple[AdapterSpec, pd.DataFrame]]:
    """Measure each of ``specs`` (rank, gamma, seed, init) at step 0 and, given two captures, at step 1.

    ``steps``: what :meth:`Capture.take` returned for the batch of step 0, and for that of step 1 with no update in
    between. The frames have the columns of the ``probes`` table (less ``cell_id``), one row per site and layer and one
    model-wide for unions of A and B; ``batch`` is ``train``. With one capture, step 0 has its update and no step
    follows. Gradients are not clipped. Raises ``ValueError`` for other than one or two captures.
    """
    if not 1 <= len(steps) <= 2:
        raise ValueError(f"{len(steps)} captures: one for step 0, two for steps 0 and 1")
    for spec in specs:
        alone = _LayersAlone(steps[0], spec)
        probe = NormProbe(alone, sites=sites, stats=stats, tokens=tokens)
        pairs = [bank.pairs[0] for bank in alone.banks]
        update = optimizer([pair.A_RD for pair in pairs], [pair.B_OR for pair in pairs])
        tables = []
        for step, captured in enumerate(steps):
            with probe.watch():
                alone.backward(captured)
            probe.before_update()
            update.step()
            probe.after_update()
            tables.append(probe.collect(step)[0])
        yield spec, pd.concat(tables, ignore_index=True)


class _LayersAlone(nn.Module):
    """One cell's adapters, each on a linear that gives 0, driven by what was captured of its layer."""

    def __init__(self, captured: Sequence[Captured], spec: AdapterSpec) -> None:
        super().__init__()
        self.banks: list[LoraBank] = []
        for index, layer in enumerate(captured):
            bank = LoraBank(_Zero(layer.x_ND.shape[1], layer.dy_NO.shape[1]), layer.layer, [spec])
            bank.buckets.to(layer.x_ND.device)
            bank.make_pairs()
            self.add_module(str(index), bank)
            self.banks.append(bank)

    def backward(self, captured: Sequence[Captured]) -> None:
        """In every pair the gradient that dL/dy passes back; the linearised loss is ``<dL/dy, y>``."""
        for bank, layer in zip(self.banks, captured, strict=True):
            bank.zero_grad()
            bank(layer.x_ND).backward(layer.dy_NO)
            bank.bind_grads()


class _Zero(nn.Module):
    """In the place of a frozen linear: its features, and outputs of 0."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = d_in, d_out

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.out_features)
