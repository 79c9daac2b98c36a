"""Transformer blocks compiled for plain training steps.

transformers computes a block's norms, rotary embeddings and gates in about a dozen passes over
memory; ``torch.compile`` fuses them. It compiles once per shape and ignores hooks that are added
later. So only training passes without a probe are compiled, and the passes of probes, evaluations
and losses after an update are not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from study.models.base import FrozenBase
from study.models.prefix import first_block


class CompiledBlocks:
    """The blocks of ``base`` from the first adapted one on, each compiled when it first runs.

    ``layers``: the paths of the adapted linears. Nothing is compiled if they are not all in one
    list of blocks.
    """

    def __init__(self, base: FrozenBase, layers: Sequence[str]) -> None:
        blocks: Any = []
        if place := first_block(layers):
            path, first = place
            every_block: Any = base.model.get_submodule(path)
            blocks = every_block[first:]
        self._programs = [(block, torch.compile(block.forward, dynamic=False)) for block in blocks]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within this context, passes run the compiled blocks."""
        try:
            for block, program in self._programs:
                block.forward = program
            yield
        finally:
            for block, _ in self._programs:
                block.__dict__.pop("forward", None)


@contextmanager
def compiled_blocks(base: FrozenBase, layers: Sequence[str]) -> Iterator[CompiledBlocks]:
    """Yield the :class:`CompiledBlocks`, and discard their programs on leaving.

    Another rank is another shape, and torch keeps a limited number of programs.
    """
    try:
        yield CompiledBlocks(base, layers)
    finally:
        torch.compiler.reset()
