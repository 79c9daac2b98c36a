"""What the cells of a pack share at step 0, computed once.

Every init leaves the product ``B A`` of an adapter at zero, so all cells start as the base model.
On one batch, a pass through the base gives them the same losses, and each adapted linear the same
input, output and output gradient. Only the gradients of the factors are a cell's own. So the first
cell's pass is kept, and later cells run their adapters on it, without the base
(:mod:`study.adapters.zero_product`). Hooks on the adapted layers see what they see in a pass
through the base. Held-out losses and answers at step 0 are kept as numbers.

Cells share a pass if their products have the same forms (:mod:`study.adapters.contraction`). Forms
differ in rounding, so a cell's numbers would otherwise depend on the cells beside it. A pass is not
kept if a layer does not run exactly once in it, which a weight of experts never does.

A pass keeps ``N (D + O)`` numbers of each layer, D of them once for layers that read one tensor;
``N O`` more if a probe reads outputs; ``D O`` more if alignments need the weight gradients.

Letters: ``K`` cells of a fold, ``N`` tokens of a cell, ``D`` / ``O`` in / out features of a layer.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from study.adapters import LoraBank
from study.config import CellConfig, chosen, probe_steps
from study.probes.alignment import weight_gradient
from study.vocabulary.quantities import SITES

MOST_GAMMA = 1e20
"""Far above it ``gamma A x`` is infinite, and its product with B = 0 is NaN."""

Numbers = Sequence[float] | Tensor


class Key(NamedTuple):
    """What a cell's numbers at step 0 depend on, within a pack.

    ``seed``: of the order of the batches; None if they don't depend on it. ``length``: of the
    sequences. ``forms``: of the products in every layer.
    """

    what: Hashable
    seed: int | None
    length: int
    forms: tuple[str, ...]


@dataclass
class KnownLayer:
    """One cell's part of a layer's input, output and output gradient.

    ``y`` is a single NaN if no probe reads outputs, and ``dy`` is None without a backward pass.
    """

    x: Tensor
    y: Tensor
    dy: Tensor | None = None


@dataclass
class KnownPass:
    """One cell's loss, a scalar on the device, and its part of every layer.

    ``weight_gradients``: ``dL/dW`` of every frozen weight, ``[O, D]``, once a cell has needed them.
    """

    loss: Tensor
    layers: Sequence[KnownLayer]
    nbytes: int
    weight_gradients: Sequence[Tensor] = ()


class SharedStart:
    """The passes at step 0 that later cells of a pack need.

    ``cells``: of the pack. ``limit``: the most bytes of kept tensors. The oldest pass makes room
    for a new one, and a pass that has no room alone is not kept. ``replays``: passes that ran
    without the base.
    """

    def __init__(self, cells: Sequence[CellConfig] = (), limit: int = 0) -> None:
        self.limit, self.replays = limit, 0
        self._to_come = {id(cell): cell.data.seed for cell in cells if may_share(cell)}
        self._passes: dict[Key, KnownPass] = {}
        self._numbers: dict[Key, float | Tensor] = {}

    def begin(self, cells: Sequence[CellConfig]) -> None:
        """From now on these cells are not among those to come.

        Passes that neither they nor later cells need are dropped.
        """
        self._passes = {key: kept for key, kept in self._passes.items() if self._is_needed(key)}
        for cell in cells:
            self._to_come.pop(id(cell), None)

    def numbers(self, keys_K: Sequence[Key], compute: Callable[[], Numbers]) -> Numbers:
        """A number for each cell: what ``compute`` returned for the first cells with these keys."""
        if keys_K and all(key in self._numbers for key in keys_K):
            kept: list[Any] = [self._numbers[key] for key in keys_K]
            return torch.stack(kept) if isinstance(kept[0], Tensor) else kept
        found = compute()
        for key, number in zip(keys_K, found, strict=False):
            if self._is_needed(key):
                self._numbers[key] = number
        return found

    def known(self, keys_K: Sequence[Key]) -> list[KnownPass]:
        """The passes of all cells; empty if one is not known. The last cells to need a pass take
        it with them.
        """
        if not keys_K or not all(key in self._passes for key in keys_K):
            return []
        self.replays += 1
        found = [self._passes[key] for key in keys_K]
        for key in set(keys_K):
            if not self._is_needed(key):
                del self._passes[key]
        return found

    def weight_gradients(self, known: KnownPass) -> Sequence[Tensor]:
        """``dL/dW`` of every layer in a known pass, ``[O, D]``. Kept with it if there is room."""
        if known.weight_gradients:
            return known.weight_gradients
        layers = [(layer.x, layer.dy) for layer in known.layers if layer.dy is not None]
        found = [
            weight_gradient(*(each.reshape(1, -1, each.shape[-1]) for each in layer))[0]
            for layer in layers
        ]
        nbytes = sum(dW_OD.nbytes for dW_OD in found)
        if nbytes + self._used() <= self.limit:
            known.weight_gradients, known.nbytes = found, known.nbytes + nbytes
        return found

    @contextmanager
    def recording(
        self, keys_K: Sequence[Key], banks: Sequence[LoraBank], outputs: bool
    ) -> Iterator[Callable[[Tensor], None]]:
        """Keeps the pass inside, forward and backward, if later cells need it and it has room.

        Yields a function that takes the losses, ``[K]``. ``outputs``: whether to keep those of the
        layers.
        """
        new = (key for key in keys_K if key not in self._passes and self._is_needed(key))
        places = {key: keys_K.index(key) for key in new}
        losses: list[Tensor] = []
        if not places:
            yield losses.append
            return
        record = _Record(len(keys_K), list(places.values()), outputs, self._make_room)
        with record.watching(banks):
            yield losses.append
        for key, layers in zip(places, record.of_cells(), strict=False):
            loss = losses[0].detach()[places[key]]
            self._passes[key] = KnownPass(loss, layers, record.nbytes // len(places))

    def _is_needed(self, key: Key) -> bool:
        """Whether a cell to come may have this key."""
        return any(key.seed in (None, seed) for seed in self._to_come.values())

    def _make_room(self, nbytes: int) -> bool:
        """Drop the oldest passes until there is room; False if there is none without any."""
        while self._passes and nbytes + self._used() > self.limit:
            del self._passes[next(iter(self._passes))]
        return nbytes <= self.limit

    def _used(self) -> int:
        return sum(known.nbytes for known in self._passes.values())


def may_share(cell: CellConfig) -> bool:
    """Whether a cell can share its passes at step 0: it starts as the base, without dropout.

    A pass of several processes is not kept, and neither are activations that are computed again.
    """
    keeps = not (cell.train.shard or cell.train.checkpointing)
    return keeps and cell.adapter.dropout == 0 and starts_as_base(cell)


def starts_as_base(cell: CellConfig) -> bool:
    """Whether the product ``gamma B A`` of every adapter is zero at step 0: it is drawn."""
    adapter = cell.adapter
    largest = max(adapter.alpha, adapter.gamma)  # at infinite rank gamma is 0
    return adapter.path is None and largest <= MOST_GAMMA


def keys_of(
    banks: Sequence[LoraBank], what: Hashable, seeds_K: Sequence[int | None], length: int
) -> list[Key]:
    """The key of each cell; see :class:`Key`."""
    forms_K = zip(*(_forms(bank) for bank in banks), strict=True)
    return [Key(what, seed, length, forms) for seed, forms in zip(seeds_K, forms_K, strict=True)]


def reads_outputs(cell: CellConfig) -> bool:
    """Whether a probe at step 0 measures the outputs of the adapted layers."""
    sites = chosen("probes.sites", cell.probes.sites, SITES)
    return "layer_out" in sites and 0 in probe_steps(cell)


def replayed(known_K: Sequence[KnownPass], banks: Sequence[LoraBank]) -> Tensor:
    """The losses of known passes, ``[K]``, as a function of the adapters.

    Runs every bank on its known input. The gradients of the factors are those of the sum of the
    losses.
    """
    outputs, gradients = [], []
    joined: tuple[list[Tensor], Tensor] | None = None
    for index, bank in enumerate(banks):
        layers = [known.layers[index] for known in known_K]
        inputs = [layer.x for layer in layers]
        # Layers that read one tensor read one tensor again: probes then measure it once.
        if joined is None or any(a is not b for a, b in zip(joined[0], inputs, strict=True)):
            joined = inputs, _joined(inputs)
        x = joined[1]
        y = _joined([layer.y for layer in layers])
        if layers[0].y.ndim == 0:
            y = layers[0].y.expand(*x.shape[:-1], bank.features[1])
        outputs.append(bank(x, known=y))
        gradients.append(_joined([layer.dy for layer in layers if layer.dy is not None]))
    return _Replayed.apply(torch.stack([known.loss for known in known_K]), gradients, *outputs)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The cells' parts of a tensor, stacked along the batch."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _forms(bank: LoraBank) -> list[str]:
    """The form of each cell's products."""
    buckets: list[Any] = list(bank.buckets)
    return [bucket.form for bucket in buckets for _ in bucket.gammas]


class _Replayed(torch.autograd.Function):
    """Known losses, ``[K]``, whose sum has known gradients with respect to the layers' outputs."""

    @staticmethod
    def forward(ctx: Any, loss_K: Tensor, gradients: Sequence[Tensor], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss_K.view_as(loss_K)

    @staticmethod
    def backward(ctx: Any, dloss_K: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.gradients


class _Record:
    """One pass as hooks on the layers see it, for some cells of a fold.

    ``cells``: of the fold. ``kept``: the places of those to keep. ``has_room``: whether so many
    bytes may be kept.
    """

    def __init__(
        self, cells: int, kept: Sequence[int], outputs: bool, has_room: Callable[[int], bool]
    ) -> None:
        self.cells, self.kept, self.outputs, self.has_room = cells, kept, outputs, has_room
        self.nbytes, self.overflows = 0, False
        self.calls: list[list[list[KnownLayer]]] = []
        """By layer, call and cell."""
        self._last_input: tuple[Tensor, list[Tensor]] | None = None

    @contextmanager
    def watching(self, banks: Sequence[LoraBank]) -> Iterator[None]:
        """Records the pass inside."""
        self.calls = [[] for _ in banks]
        hooks = [
            bank.register_forward_hook(partial(self._on_forward, calls))
            for bank, calls in zip(banks, self.calls, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._last_input = None

    def of_cells(self) -> list[list[KnownLayer]]:
        """The layers of each cell; empty if a pass like this one can't be replayed."""
        once = not self.overflows and all(len(calls) == 1 for calls in self.calls)
        layers = [layer for calls in self.calls for call in calls for layer in call]
        if not once or len({layer.dy is None for layer in layers}) != 1:
            return []
        return [list(of_cell) for of_cell in zip(*(call for [call] in self.calls), strict=True)]

    def _on_forward(
        self, calls: list[list[KnownLayer]], _: nn.Module, args: tuple[Tensor, ...], y: Tensor
    ) -> None:
        if self.overflows:
            return
        if self._last_input is None or self._last_input[0] is not args[0]:
            self._last_input = args[0], self._parts(args[0])
        outputs = self._parts(y) if self.outputs else [y.new_full((), math.nan)] * len(self.kept)
        each = zip(self._last_input[1], outputs, strict=True)
        calls.append([KnownLayer(x, of_cell) for x, of_cell in each])
        if y.requires_grad:
            y.register_hook(partial(self._on_backward, calls[-1]))

    def _on_backward(self, call: list[KnownLayer], dy: Tensor) -> None:
        if not self.overflows:
            for layer, part in zip(call, self._parts(dy), strict=True):
                layer.dy = part

    def _parts(self, x: Tensor) -> list[Tensor]:
        """The rows of each cell to keep. Those of a fold of one are not copied."""
        chunks = x.detach().chunk(self.cells)
        parts = [chunks[k] if self.cells == 1 else chunks[k].clone() for k in self.kept]
        self.nbytes += sum(part.nbytes for part in parts)
        if not self.has_room(self.nbytes):
            self.overflows = True
            self.calls.clear()
        return parts
