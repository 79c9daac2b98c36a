"""The forward and backward passes between two updates of somebody else's loop.

Hooks on the model find them, so a loop needs no lines around its micro-batches. Nothing is read
from the device here.
"""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.variable import Variable

from study.errors import StudyError
from study.probes import NormProbe
from study.probes.norm_probe import Gradients


@dataclass
class Pass:
    """One forward pass with gradients on: its sequences and real tokens, 0 if unknown.

    ``reached``: a backward pass came through its output.
    """

    sequences: int
    tokens: Tensor | int
    reached: bool = False


class Passes:
    """Watches ``model`` between two updates.

    ``weights``: the parameters that the optimizer updates.

    - A pass begins when ``model`` is called with gradients on. Passes without gradients, such as
      generation and evaluation, are not counted and not measured.
    - A backward pass is noticed by a hook on the tensors of the model's output. When it has ended,
      ``norm`` is the norm of the gradients accumulated so far, and at a probed step their copies
      are kept: whatever comes between the last backward pass and the update is clipping.
    - The loss of the step is the sum of ``loss`` times the gradient that arrives at it. That is the
      mean, however the loop divides by its number of micro-batches.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensor]) -> None:
        self.model, self.weights = model, weights
        self._arguments = tuple(inspect.signature(model.forward).parameters)
        self._watches = ExitStack()
        self.begin([])

    def begin(self, probes: Sequence[NormProbe]) -> None:
        """Forget everything: a new step begins. ``probes``: those that measure it."""
        self._watches.close()
        self.probes = probes
        self.passes: list[Pass] = []
        self.norm: Tensor | None = None
        self.gradients: list[Gradients] = []
        self.backwards = 0
        self._task = -1
        self._of_outputs: list[Tensor] = []
        self._given: list[Tensor] = []
        self._expected = 0

    def attach(self, hooks: ExitStack) -> None:
        """Watch the model until ``hooks`` is closed."""
        before = self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        after = self.model.register_forward_hook(self._after_forward)
        for hook in (before, after):
            hooks.callback(hook.remove)
        hooks.callback(self._watches.close)

    def loss(self, loss: Tensor | float) -> None:
        """The loss of a micro-batch, before its backward pass. It replaces the model's own."""
        if not isinstance(loss, Tensor):
            loss = torch.tensor(float(loss))
        self._expected += 1
        _weigh(loss, self._given)

    @property
    def step_loss(self) -> Tensor | None:
        """The loss of the step so far, a scalar on the device; None if none was seen.

        Raises :class:`StudyError` if a loss was given after its backward pass.
        """
        if len(self._given) < self._expected:
            raise StudyError(
                "recording.loss(loss) came after loss.backward(): call it before the backward pass"
            )
        losses = self._given or self._of_outputs
        return torch.stack([loss.to(losses[0].device) for loss in losses]).sum() if losses else None

    @property
    def tokens(self) -> int:
        """Real tokens so far. It waits for the device if masks are there."""
        return int(sum(one.tokens for one in self.passes))

    def end_watch(self) -> None:
        """Remove the probes' hooks."""
        self._watches.close()

    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        inputs = dict(zip(self._arguments, args, strict=False)) | kwargs
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        real_BT = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.passes.append(_pass(ids, real_BT))
        self._watches.close()
        for probe in self.probes:
            self._watches.enter_context(probe.watch(real_BT))

    def _after_forward(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.is_grad_enabled() or not self.passes:
            return
        began = partial(self._backward_begins, self.passes[-1])
        for tensor in _tensors(output):
            tensor.register_hook(began)
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad:
            _weigh(loss, self._of_outputs)

    def _backward_begins(self, of_pass: Pass, _: Tensor) -> None:
        of_pass.reached = True
        task = torch._C._current_graph_task_id()
        if task != self._task:  # an output of several tensors has several hooks
            self._task = task
            Variable._execution_engine.queue_callback(self._backward_ended)

    @torch.no_grad()
    def _backward_ended(self) -> None:
        """All gradients of the backward pass are in ``.grad``."""
        self.backwards += 1
        self._watches.close()
        self.take_gradients()

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Take ``.grad`` as it is now for the gradient before clipping."""
        self.norm = norm_of_gradients(self.weights)
        self.gradients = [_copies(probe) for probe in self.probes]


def norm_of_gradients(weights: Sequence[Tensor]) -> Tensor | None:
    """The norm of all gradients together, a float32 scalar on the device; None without any."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients, 2.0, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _copies(probe: NormProbe) -> Gradients:
    return [
        [(_copy(pair.A_RD.grad), _copy(pair.B_OR.grad)) for pair in layer.pairs()]
        for layer in probe.layers
    ]


def _copy(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()


def _weigh(loss: Tensor, into: list[Tensor]) -> None:
    """Append ``loss`` times the gradient that arrives at it, when it arrives."""
    value = loss.detach().float().clone()  # loops divide a loss in place
    if not loss.requires_grad:
        into.append(value.sum())
        return

    def arrive(gradient: Tensor) -> None:
        into.append((value * gradient.float()).sum())

    loss.register_hook(arrive)


def _pass(ids: Any, real_BT: Tensor | None) -> Pass:
    first = ids if isinstance(ids, Tensor) else real_BT
    if first is None:
        return Pass(0, 0)
    return Pass(first.shape[0], first.numel() if real_BT is None else real_BT.sum())


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a model's output that have a gradient, from one level of a container."""
    parts = output.values() if isinstance(output, dict) else output
    if isinstance(parts, Tensor):
        parts = [parts]
    try:
        found = list(parts)
    except TypeError:  # an object of the model's own
        found = list(vars(parts).values())
    return [part for part in found if isinstance(part, Tensor) and part.requires_grad]
