"""Transformer blocks compiled for plain training steps.

``torch.compile`` fuses the norms, rotary embeddings and gates of a block, which are about a dozen
passes over memory. A compiled program ignores hooks that are added later, so passes of probes,
evaluations and losses after an update are not compiled.

All blocks and all ranks share one program, in which the rank is a variable dimension. Each form of
the adapters (:mod:`study.adapters.contraction`) and each number of tokens or cells needs its own
program. torch caches programs on disk.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from study.models.base import FrozenBase
from study.models.card import first_block
from study.models.messages import replaced

MOST_PROGRAMS = 64
"""The most programs of a block that torch keeps: for forms and ranks of a pack. Default: 8."""


class CompiledBlocks:
    """The blocks of ``base`` after the first adapted one, each compiled when it first runs.

    The first adapted block is not compiled: its input needs no gradient, so it would need its own
    program. ``layers``: the paths of the adapted linears. Nothing is compiled if they are not all
    in one list of blocks. ``ranks``: the factors inside the blocks, each with its dimension that is
    the rank.
    """

    def __init__(
        self, base: FrozenBase, layers: Sequence[str], ranks: Sequence[tuple[Tensor, int]]
    ) -> None:
        self.blocks: list[nn.Module] = []
        if place := first_block(layers):
            path, first = place
            every_block: Any = base.model.get_submodule(path)
            self.blocks = list(every_block[first + 1 :])
        self._programs = {
            block: torch.compile(block.forward, dynamic=False) for block in self.blocks
        }
        for factor, dimension in ranks if self.blocks else ():
            torch._dynamo.maybe_mark_dynamic(factor, dimension)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context manager: passes run the compiled blocks."""
        # Parameters may have dimensions of variable size.
        settings = {"force_parameter_static_shapes": False, "recompile_limit": MOST_PROGRAMS}
        with (
            replaced("forward", self._programs),
            torch._dynamo.config.patch(settings) if self.blocks else nullcontext(),
        ):
            yield


@contextmanager
def programs(compiled: bool) -> Iterator[None]:
    """Context manager: discard the programs on exit, if anything was ``compiled``."""
    try:
        yield
    finally:
        if compiled:
            torch.compiler.reset()
