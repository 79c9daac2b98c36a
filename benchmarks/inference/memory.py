"""The memory that tensors take while a block runs."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were created inside; ``peak`` is the maximum.

    It counts the tensors themselves, on any device. What an allocator rounds up or keeps for later
    is not counted. Tensors of ``known`` and views of them were not created inside.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self._held = [
            tensor.untyped_storage() for tensor in known
        ]  # alive, so their ids are theirs
        self._known = {id(storage) for storage in self._held}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._known:
            self._known.add(id(storage))
            self._now += storage.nbytes()
            weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
