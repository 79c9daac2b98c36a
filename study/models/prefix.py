"""The blocks below the first adapted one, run once a batch: what they make of it is the same for every cell.

Where adapters sit on late layers alone, cells that read the same batches share everything below them, and so do one
cell's passes over the held-out examples. Within :func:`shared_prefix` the output of the last such block is kept by
batch, on the device, and the blocks below hand it on instead of computing it again.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from study.models.base import FrozenBase, nothing


class Prefix:
    """Block outputs by batch, up to ``limit`` bytes of them: the first batches are kept, as every cell begins there."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.hits = 0
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._key: tuple[Any, ...] | None = None

    @contextmanager
    def during(self, input_ids_BT: Tensor) -> Iterator[None]:
        """Around the pass of one batch, which is looked at on the CPU, so that no device waits."""
        self._key = (tuple(input_ids_BT.shape), input_ids_BT.cpu().numpy().tobytes())
        self.hits += self._key in self._kept
        try:
            yield
        finally:
            self._key = None

    @property
    def known(self) -> bool:
        """Whether the batch of this pass has been here before."""
        return self._key in self._kept

    def recall(self) -> Any:
        """What the last block made of it."""
        assert self._key is not None
        return self._kept[self._key]

    def keep(self, output: Any) -> None:
        """Keep that for the next time, while there is room; outside of :meth:`during` nothing is kept."""
        size = sum(leaf.nbytes for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
        if self._key is not None and self.used + size <= self.limit:
            self._kept[self._key] = pytree.tree_map(
                lambda x: x.detach() if isinstance(x, Tensor) else x, output
            )
            self.used += size


class _Below(nn.Module):
    """In the place of a block below the first adapted one: computes it, or hands on what is known."""

    def __init__(self, block: nn.Module, prefix: Prefix, is_last: bool) -> None:
        super().__init__()
        self.block, self.prefix, self.is_last = block, prefix, is_last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.prefix.known:
            return self.prefix.recall()
        output = self.block(*args, **kwargs)
        if self.is_last:
            self.prefix.keep(output)
        return output

    def __getattr__(self, name: str) -> Any:
        """Models ask their blocks for more than a pass (their kind of attention, say)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


@contextmanager
def shared_prefix(base: FrozenBase, layers: Sequence[str], limit: int) -> Iterator[Prefix | None]:
    """``base`` with the blocks below ``layers`` run once a batch; None, and ``base`` as it is, where none is below.

    ``limit``: bytes. The base is whole again on leaving.
    """
    place = first_block(layers)
    if place is None or place[1] == 0:
        yield None
        return
    path, first = place
    blocks: Any = base.model.get_submodule(path)
    originals, prefix = list(blocks[:first]), Prefix(limit)
    try:
        for index, block in enumerate(originals):
            blocks[index] = _Below(block, prefix, is_last=index == first - 1)
        base.around_pass = prefix.during
        yield prefix
    finally:
        base.around_pass = nothing
        for index, block in enumerate(originals):
            blocks[index] = block


def first_block(layers: Sequence[str]) -> tuple[str, int] | None:
    """The path of the list that the adapted blocks are in, and the lowest of their numbers; None where lists differ."""
    found = [match for match in (re.match(r"(.+?)\.(\d+)\.", layer) for layer in layers) if match]
    paths = {match[1] for match in found}
    if len(found) < len(layers) or len(paths) != 1:
        return None
    return paths.pop(), min(int(match[2]) for match in found)
