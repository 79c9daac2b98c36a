"""Transformer blocks compiled for plain training steps, and whether that pays.

transformers computes a block's norms, rotary embeddings and gates in about a dozen passes over
memory; ``torch.compile`` fuses them. A program ignores hooks that are added later. So only training
passes without a probe are compiled, and the passes of probes, evaluations and losses after an
update are not.

All blocks of a model share one program, and so do all ranks, because the rank is a dimension of
variable size in it. Another form of the adapters (:mod:`study.adapters.contraction`), other numbers
of tokens and other numbers of cells are other programs. torch keeps what it has compiled on disk,
in its cache of inductor, so that the next run compiles faster.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from study.config import AUTO_COMPILE
from study.errors import one_line
from study.models.anatomy import first_block
from study.models.base import FrozenBase

Ranks = Sequence[tuple[Tensor, int]]
"""Factors of adapters, each with its dimension that is the rank."""

MOST_PROGRAMS = 64
"""Programs that torch keeps of one block, for the forms and ranks of a pack. Its default is 8."""
MOST_SAVED = 0.5
"""The largest share of a pass that compiling can save. Measured so far: up to 0.3."""
LEAST_COMPILING = 10.0
"""Seconds that compiling takes at least. If the passes left can't save as much, it is not tried."""
TRIAL = 0.4
"""Seconds for which a block is timed each way."""


class CompiledBlocks:
    """The blocks of ``base`` after the first adapted one, each compiled when it first runs.

    The first adapted block is not compiled: its input needs no gradient, so that it would be a
    program of its own. ``layers``: the paths of the adapted linears. Nothing is compiled if they
    are not all in one list of blocks. ``ranks``: the factors inside the blocks.
    """

    def __init__(self, base: FrozenBase, layers: Sequence[str], ranks: Ranks) -> None:
        self.blocks = _blocks(base, layers)
        self._programs = [_program(block) for block in self.blocks] if self.blocks else []
        for factor, dimension in ranks if self.blocks else ():
            torch._dynamo.maybe_mark_dynamic(factor, dimension)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within this context, passes run the compiled blocks."""
        try:
            for block, program in zip(self.blocks, self._programs, strict=True):
                block.forward = program
            with _settings() if self.blocks else nullcontext():
                yield
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)


def _blocks(base: FrozenBase, layers: Sequence[str]) -> list[nn.Module]:
    place = first_block(layers)
    if place is None:
        return []
    path, first = place
    every_block: Any = base.model.get_submodule(path)
    return list(every_block[first + 1 :])


def _program(block: nn.Module) -> Callable[..., Any]:
    return torch.compile(block.forward, dynamic=False)


def _settings() -> Any:
    """How torch compiles: parameters may have dimensions of variable size."""
    return torch._dynamo.config.patch(
        force_parameter_static_shapes=False, recompile_limit=MOST_PROGRAMS
    )


@dataclass(frozen=True)
class Passes:
    """The training passes of a fold: forward and backward of one micro-batch each.

    - ``sequences``, ``length``: the shape of a compiled pass;
    - ``share``: of its tokens, those that a plain pass computes too, without padding;
    - ``left``: how many plain passes this fold still has, and ``whole``: how many a fold has;
    - ``bf16``: whether products are computed in bf16.
    """

    sequences: int
    length: int
    share: float
    left: int
    whole: int
    bf16: bool


@dataclass(frozen=True)
class Trial:
    """Seconds of one block's pass without and with compiling, and of compiling it."""

    plain: float
    compiled: float
    compiling: float


class Compiler:
    """The choice between plain and compiled blocks, made once for all folds of a pack.

    - ``asked``: ``pack.compile``. With ``auto`` one block is timed both ways, for about a second
      and the time that compiling it takes, unless the passes left are too few to pay for that;
    - ``say``: gets a line about what was chosen and why;
    - ``folds_after``: how many folds of the pack come after the present one.
    """

    def __init__(self, asked: bool | str, say: Callable[[str], None]) -> None:
        self._asked, self._say = asked, say
        self.folds_after = 0
        self.has_compiled = False
        self._chosen = None if asked == AUTO_COMPILE else bool(asked)

    def blocks(
        self, base: FrozenBase, layers: Sequence[str], ranks: Ranks, passes: Passes
    ) -> CompiledBlocks | None:
        """The compiled blocks of a fold, or None if its passes are to run as they are.

        Call it while the adapters are in the model. A trial leaves weights and gradients as they
        are; the adapters' streams of dropout move.
        """
        if self._chosen is None:
            self._chosen, why = self._choose(base, layers, ranks, passes)
            done = "compiled" if self._chosen else "not compiled"
            self._say(f"pack.compile={AUTO_COMPILE}: {done}: {why}")
        if not self._chosen:
            return None
        self.has_compiled = True
        return CompiledBlocks(base, layers, ranks)

    def _choose(
        self, base: FrozenBase, layers: Sequence[str], ranks: Ranks, passes: Passes
    ) -> tuple[bool, str]:
        compiled = CompiledBlocks(base, layers, ranks)
        if not compiled.blocks:
            return False, "no two blocks of the model have adapters in one list"
        block, left = compiled.blocks[0], passes.left + self.folds_after * passes.whole
        with torch.autocast(base.device.type, torch.bfloat16, enabled=passes.bf16):
            inputs = _inputs(base, block, passes)
            plain = _timed(block, inputs, base.device) * passes.share
            all_plain = plain * len(compiled.blocks) * left
            if all_plain * MOST_SAVED < LEAST_COMPILING:
                return False, (
                    f"the {left} passes left take {all_plain:.2g} s, too little to pay for it"
                )
            self.has_compiled = True
            try:
                with compiled.running():
                    compiling = _once(block, inputs, base.device)
                    trial = Trial(plain, _timed(block, inputs, base.device), compiling)
            except Exception as error:  # for example, there is no C++ compiler
                return False, f"torch.compile fails: {one_line(error)}"
        return chosen(trial, len(compiled.blocks) * left)


def chosen(trial: Trial, passes: int) -> tuple[bool, str]:
    """Whether compiling pays over so many passes of a block, and why."""
    saved = (trial.plain - trial.compiled) * passes
    times = (
        f"a block takes {1e3 * trial.compiled:.3g} ms compiled and {1e3 * trial.plain:.3g} ms as "
        "it is"
    )
    if saved <= 0:
        return False, times
    pays = saved > trial.compiling
    return pays, (
        f"{times}, which saves {saved:.3g} s in the passes left; compiling takes "
        f"{trial.compiling:.3g} s"
    )


@contextmanager
def compiler(
    asked: bool | str, say: Callable[[str], None] = lambda line: None
) -> Iterator[Compiler]:
    """Yield the :class:`Compiler` of a pack, and discard its programs on leaving."""
    made = Compiler(asked, say)
    try:
        yield made
    finally:
        if made.has_compiled:
            torch.compiler.reset()


class _Reached(Exception):
    """A block was reached, with these inputs."""


def _inputs(base: FrozenBase, block: nn.Module, passes: Passes) -> Any:
    """The arguments of ``block`` in a pass of that shape: ``(args, kwargs)``. The first tensor, the
    hidden states, has a gradient.
    """

    def stop(_: nn.Module, args: Any, kwargs: Any) -> None:
        raise _Reached(args, kwargs)

    shape = passes.sequences, passes.length
    ids_BT = torch.arange(shape[0] * shape[1]).remainder(base.vocabulary).view(shape)
    hook = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            base.trunk(input_ids=ids_BT.to(base.device), use_cache=False)
    except _Reached as reached:
        leaves, structure = pytree.tree_flatten(reached.args)
        first = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        leaves[first] = leaves[first].detach().requires_grad_()
        return pytree.tree_unflatten(leaves, structure)
    finally:
        hook.remove()
    raise AssertionError("the model does not run all of its blocks")


def _once(block: nn.Module, inputs: Any, device: torch.device) -> float:
    """Seconds of one forward and backward pass of ``block``. Leaves no gradients."""
    args, kwargs = inputs
    needed = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)][:1]
    needed += [weight for weight in block.parameters() if weight.requires_grad]
    began = time.perf_counter()
    with torch.enable_grad():
        output = pytree.tree_leaves(block(*args, **kwargs))[0]
        torch.autograd.grad(output, needed, torch.ones_like(output), allow_unused=True)
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter() - began


def _timed(block: nn.Module, inputs: Any, device: torch.device) -> float:
    """The median seconds of passes over :data:`TRIAL` seconds, after one that warms up."""
    _once(block, inputs, device)
    times = [_once(block, inputs, device)]
    while sum(times) < TRIAL:
        times.append(_once(block, inputs, device))
    return median(times)
