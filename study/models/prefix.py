"""A cache for the blocks below the first adapted one, whose output is the same for every cell.

If only late layers have adapters, then cells with the same batches, and the evaluations of one
cell, share all computation below those layers. Within :func:`shared_prefix`, the output of the last
block below is cached on the device, by batch, and the blocks below are skipped for a known batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from study.models.anatomy import first_block
from study.models.base import FrozenBase, no_context


class Prefix:
    """Block outputs by batch, up to ``limit`` bytes in total.

    The first batches are kept, because every cell starts with them. ``used``: bytes; ``hits``:
    passes that found their batch in the cache.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.hits = 0
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._key: tuple[Any, ...] | None = None

    @contextmanager
    def during(self, input_ids_BT: Tensor) -> Iterator[None]:
        """The context of one batch's pass. Tokens on the CPU avoid a wait for the device."""
        self._key = (tuple(input_ids_BT.shape), input_ids_BT.cpu().numpy().tobytes())
        self.hits += self._key in self._kept
        try:
            yield
        finally:
            self._key = None

    @property
    def known(self) -> bool:
        """Whether the output for the current batch is in the cache."""
        return self._key in self._kept

    def recall(self) -> Any:
        """The output of the last block below, for the current batch."""
        assert self._key is not None
        return self._kept[self._key]

    def keep(self, output: Any) -> None:
        """Cache the output of the last block below, if it fits and within :meth:`during`."""
        size = sum(leaf.nbytes for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
        if self._key is not None and self.used + size <= self.limit:
            self._kept[self._key] = pytree.tree_map(
                lambda x: x.detach() if isinstance(x, Tensor) else x, output
            )
            self.used += size


class _CachedBlock(nn.Module):
    """Replaces a block below the first adapted one: returns the cached output or computes it."""

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
        """Models also read attributes of their blocks, such as the kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


@contextmanager
def shared_prefix(base: FrozenBase, layers: Sequence[str], limit: int) -> Iterator[Prefix | None]:
    """Yield a cache of at most ``limit`` bytes for the blocks of ``base`` below ``layers``.

    Yields None, without a change to ``base``, if no block is below. ``base`` is restored on
    leaving.
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
            blocks[index] = _CachedBlock(block, prefix, is_last=index == first - 1)
        base.around_pass = prefix.during
        yield prefix
    finally:
        base.around_pass = no_context
        for index, block in enumerate(originals):
            blocks[index] = block
