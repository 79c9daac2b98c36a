"""The transformer blocks of a base, and blocks that are computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from study.errors import StudyError
from study.models.anatomy import first_block
from study.models.base import FrozenBase
from study.models.card import ModelCard


def block_path(card: ModelCard) -> str:
    """The path of a model's list of blocks.

    Raises :class:`StudyError` if its linears are not all in one list.
    """
    place = first_block(card.linears)
    if place is None:
        raise StudyError(
            f"{card.name} has no single list of blocks: use train.shard=false and "
            "train.checkpointing=false"
        )
    return place[0]


def blocks_of(base: FrozenBase) -> list[nn.Module]:
    """The blocks of a base, in order. Raises :class:`StudyError` as :func:`block_path` does."""
    blocks: Any = base.model.get_submodule(block_path(base.card))
    return list(blocks)


@contextmanager
def recomputing(base: FrozenBase) -> Iterator[None]:
    """Inside, a forward pass keeps only the input of each block.

    A backward pass computes each block again, as a whole, before its gradients: a third more
    products, and the activations of one block at a time. The numbers are the same.
    """
    blocks = blocks_of(base)
    try:
        for block in blocks:
            block.forward = partial(_checkpointed, block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
