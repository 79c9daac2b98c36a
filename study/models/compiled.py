"""Blocks compiled for the plain training step.

transformers writes a block's norms, rotations and gates as a dozen passes over memory; ``torch.compile`` fuses them. It
makes a program for every shape and does not see hooks that come later, so only training passes that nothing looks on at
run compiled; a probe's, an evaluation's and those behind an update run as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from study.models.base import FrozenBase
from study.models.prefix import first_block


class CompiledBlocks:
    """The blocks of ``base`` from the first that ``layers`` are in; each is compiled when it first runs.

    Where the layers lie in no one list of blocks, there are none.
    """

    def __init__(self, base: FrozenBase, layers: Sequence[str]) -> None:
        place = first_block(layers)
        blocks: Any = [] if place is None else base.model.get_submodule(place[0])[place[1] :]  # type: ignore[index]
        self._programs = [(block, torch.compile(block.forward, dynamic=False)) for block in blocks]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a pass with gradients: its blocks run compiled."""
        try:
            for block, program in self._programs:
                block.forward = program
            yield
        finally:
            for block, _ in self._programs:
                block.__dict__.pop("forward", None)


@contextmanager
def compiled_blocks(base: FrozenBase, layers: Sequence[str]) -> Iterator[CompiledBlocks]:
    """What was compiled is dropped on leaving: another rank is another shape, and torch keeps only so many."""
    try:
        yield CompiledBlocks(base, layers)
    finally:
        torch.compiler.reset()
