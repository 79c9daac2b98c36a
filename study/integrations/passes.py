"""The forward and backward passes between two updates of a recorded loop.

Hooks on the model find them, so a loop needs no lines around its micro-batches. The host reads
nothing from the device, except whether gradients that the loop changed in place are zero.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.variable import Variable

from study.adapters.bank import own
from study.probes import NormProbe
from study.probes.layers import AdaptedLayer
from study.probes.norm_probe import Gradients


class Hook:
    """A function as a hook of a module. In a copy, such as a moving average, it does nothing."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs) if self._function else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, ()


@dataclass(eq=False)
class Loss:
    """A loss that the loop (``is_given``) or the model named.

    ``value`` is its part of the loss of the step: None until its backward pass, then multiplied by
    the gradient that arrived at it, ``weight``. A loss without a graph has no weight.
    """

    value: Tensor | None
    is_given: bool
    weight: Tensor | None = None


@dataclass(eq=False)
class ForwardPass:
    """One forward pass with gradients on. ``tokens``: the real ones. ``content``: a checksum of
    them, however processes divide the batch. ``watched``: the number that each probe gave to it.
    ``reached``: by a backward pass. ``losses``: those named after it and before the next pass.
    ``weights``: the norms of the weights at this pass."""

    sequences: int = 0
    tokens: Tensor | int = 0
    content: Tensor | int = 0
    watched: list[int] = field(default_factory=list)
    reached: bool = False
    losses: list[Loss] = field(default_factory=list)
    weights: Tensor | None = None


class LoopPasses:
    """Watches ``model`` between two updates of ``weights``.

    - A pass begins when ``model`` is called with gradients on, so not in generation or evaluation.
    - A hook on the model's output notices a backward pass. After it, ``norm`` is the norm of the
      gradients so far, and at a probed step their copies are kept. Later changes are clipping.
    - A pass is used by the update if a backward pass came through it and its gradients were not
      cleared since. Everything else is dropped: its loss, its tokens, its activations.
    - The loss of the step is the sum of ``loss`` times the gradient that arrives at it. That is the
      mean, however the loop divides by its number of micro-batches.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensor]) -> None:
        self.model, self.weights = model, weights
        self._trained = [weight for weight in weights if weight.requires_grad]
        self.are_divided = any(hasattr(weight, "to_local") for weight in weights)  # by FSDP2
        called: Any = model
        if type(model).__name__ == "PeftModel":  # its own forward has no names
            called = called.get_base_model()
        self._arguments = tuple(inspect.signature(called.forward).parameters)
        self._watches = ExitStack()
        self.probes: Sequence[NormProbe] = []
        self.passes: list[ForwardPass] = []
        self.begin([])

    def begin(self, probes: Sequence[NormProbe]) -> None:
        """Begin a new step: forget the last one. ``probes``: those that measure it."""
        self._watches.close()
        self._drop(self.passes)
        self.probes = probes
        self.backwards = 0
        self.gradients: list[Gradients] = []
        self.rescaled: Tensor | None = None
        """The factor by which the loop scaled all gradients before :meth:`take_gradients`."""
        self._norms: list[Tensor] = []
        self._state: list[tuple[int, int]] = []
        self._in_backward = False

    def attach(self, hooks: ExitStack) -> None:
        before = self.model.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True)
        after = self.model.register_forward_hook(Hook(self._after_forward))
        for close in (before.remove, after.remove, self._watches.close):
            hooks.callback(close)

    def loss(self, loss: Tensor | float, is_given: bool = True) -> None:
        """The loss of a micro-batch, before its backward pass. It replaces the model's own."""
        if not self.passes:
            return
        named = torch.as_tensor(loss)
        value = named.detach().float().clone()  # loops divide a loss in place
        found = Loss(None if named.requires_grad else value.sum(), is_given)
        self.passes[-1].losses.append(found)

        def arrive(gradient: Tensor | None) -> None:
            if gradient is not None:  # of a loss that DDP returns and nobody uses
                self._backward_begins()
                self._arrived.append((found, value, gradient.detach().float()))

        if named.requires_grad:
            named.register_hook(arrive)

    @property
    def norm(self) -> Tensor | None:
        return joint_norm(self._norms)

    @property
    def _losses(self) -> list[Loss]:
        losses = [loss for one in self.passes for loss in one.losses if loss.value is not None]
        return [loss for loss in losses if loss.is_given] or losses

    @property
    def step_loss(self) -> Tensor | None:
        """The loss of the step, a scalar on the device; None if none was seen."""
        factor = 1.0 if self.rescaled is None else self.rescaled
        parts: list[Any] = [(each.value, each.weight) for each in self._losses]
        values = [value if weight is None else value * factor for value, weight in parts]
        return together(values).sum() if values else None

    @property
    def loss_weights(self) -> list[float]:
        """The factors of the step's losses in what the loop calls ``backward`` on. Empty if the
        loop has scaled the gradients since. Waits for the device."""
        is_scaled = self.rescaled is not None and float(self.rescaled) != 1.0
        known = [] if is_scaled else self._losses
        return [float(loss.weight) for loss in known if loss.weight is not None]

    @torch.no_grad()
    def norms_of_weights(self) -> Tensor:
        """The norm of this process's part of each trained weight, on the device of the first."""
        parts = [own(weight.detach()) for weight in self._trained]
        return together(torch._foreach_norm(parts, 2.0, dtype=torch.float32))

    def had_other_weights(self, now: Tensor) -> Tensor:
        """Whether a pass that the update uses had other norms of weights than ``now``, a bool on
        the device."""
        differ = torch.zeros_like(now, dtype=torch.bool)
        for one in self.passes:
            assert one.weights is not None
            differ |= (one.weights != now) & ~(one.weights.isnan() & now.isnan())
        return differ.any()

    def are_other_gradients(self, norms: Sequence[Tensor]) -> Tensor:
        """Whether gradients with these ``norms`` are no multiple of the measured ones, a bool on
        the device."""
        if len(norms) != len(self._norms):
            return torch.ones_like(norms[0], dtype=torch.bool)
        return _common_factor(self._norms, norms)[1]

    def end_watch(self) -> None:
        """Remove the probes' hooks, and drop passes that the update does not use."""
        self._watches.close()
        self._drop([one for one in self.passes if not one.reached])

    def _are_cleared(self) -> bool:
        if self._gradient_state() == self._state:
            return False
        norm = joint_norm(norms_of_gradients(self.weights))
        return norm is None or float(norm) == 0.0

    def _gradient_state(self) -> list[tuple[int, int]]:
        """Changes whenever any ``.grad`` is replaced or changed in place."""
        return [(id(w.grad), own(w.grad)._version) for w in self.weights if w.grad is not None]

    def _drop(self, unused: Sequence[ForwardPass]) -> None:
        for index, probe in enumerate(self.probes):
            probe.forget({one.watched[index] for one in unused})
        self.passes = [one for one in self.passes if one not in unused]

    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        self._in_backward = False  # also after one that ended with an exception
        inputs = dict(zip(self._arguments, args, strict=False)) | kwargs
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        real_BT = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        first = ids if isinstance(ids, Tensor) else real_BT
        if first is None:  # no tokens, such as pictures or embeddings
            self.passes.append(ForwardPass())
            tensors = (each for each in inputs.values() if isinstance(each, Tensor) and each.ndim)
            for each in islice(tensors, 1):
                bits = each.detach().float().view(torch.int32).sum()
                self.passes[-1].sequences, self.passes[-1].content = len(each), bits
        else:
            real = torch.ones_like(first) if real_BT is None else real_BT
            content_BT = first.long() ** 3 * (real if real.shape == first.shape else 1)
            self.passes.append(ForwardPass(len(first), real.sum(), content_BT.sum()))
        self.passes[-1].weights = self.norms_of_weights()
        self._watches.close()
        for probe in self.probes:
            number = self._watches.enter_context(probe.watch(real_BT))
            self.passes[-1].watched.append(number)

    def _after_forward(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.is_grad_enabled() or not self.passes:
            return
        newest = self.passes[-1]

        def reached(_: Tensor) -> None:
            self._backward_begins()
            self._through.append(newest)

        for tensor in _tensors(output):
            tensor.register_hook(reached)
        if isinstance(output, tuple):  # return_dict=False: the loss comes first
            loss = next((part for part in _tensors(output)[:1] if part.ndim == 0), None)
        else:
            loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad:
            self.loss(loss, is_given=False)

    def _backward_begins(self) -> None:
        """Once for each backward pass, although it comes through several tensors."""
        if self._in_backward:
            return
        if self.backwards and self._are_cleared():
            self._drop([one for one in self.passes if one.reached])
            self._norms, self.gradients = [], []
        self._in_backward = True
        self._arrived: list[tuple[Loss, Tensor, Tensor]] = []
        self._through: list[ForwardPass] = []
        self._state_before = self._gradient_state()
        # Called when the backward pass that is running has ended, as DDP and FSDP do it.
        queue = Variable._execution_engine.queue_callback
        queue(lambda: queue(self._backward_ended))

    @torch.no_grad()
    def _backward_ended(self) -> None:
        """All gradients of the backward pass are in ``.grad``, unless it was of something else."""
        self._in_backward = False
        # FSDP2 keeps gradients that it does not add up yet out of ``.grad``.
        if self._gradient_state() == self._state_before and not self.are_divided:
            return  # torch.autograd.grad, or the gradients of other weights
        for loss, value, gradient in self._arrived:
            part, weight = (value * gradient).sum(), gradient.sum()
            loss.value = part if loss.value is None else loss.value + part
            loss.weight = weight if loss.weight is None else loss.weight + weight
            for one in self.passes:  # the newest pass may have no part in the loss
                if loss in one.losses and self._through and one not in self._through:
                    one.losses.remove(loss)
                    self._through[-1].losses.append(loss)
        if self.probes and any(one.reached for one in self._through):
            warnings.warn(
                "several backward passes came through one forward pass, and layer_out_grad and "
                "adapter_in_grad are wrong then: add the losses and call backward once",
                stacklevel=2,
            )
        for one in self._through:
            one.reached = True
        self.backwards += 1
        self.rescaled = None
        self._watches.close()
        self._read_gradients()

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Use the current ``.grad`` as the gradient before clipping. If all were scaled by one
        factor since the last backward pass, so is the loss."""
        before = self._norms
        self._read_gradients()
        if before and len(before) == len(self._norms):
            factor, differ = _common_factor(before, self._norms)
            factor = torch.where(differ | ~factor.isfinite(), torch.ones_like(factor), factor)
            self.rescaled = factor if self.rescaled is None else self.rescaled * factor

    def _read_gradients(self) -> None:
        self._norms, self._state = norms_of_gradients(self.weights), self._gradient_state()
        self.gradients = [[copies(layer) for layer in probe.layers] for probe in self.probes]


def copies(layer: AdaptedLayer) -> list[tuple[Tensor | None, Tensor | None]]:
    grads = [stack.gradients for stack in layer.stacks()]
    return [(None if A is None else A.clone(), None if B is None else B.clone()) for A, B in grads]


def norms_of_gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    """The norm of this process's part of each gradient, float32 scalars on the devices."""
    gradients = [own(weight.grad) for weight in weights if weight.grad is not None]
    return list(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)) if gradients else []


def joint_norm(norms: Sequence[Tensor]) -> Tensor | None:
    """The norm of all gradients together, a float32 scalar on the device; None without any."""
    return torch.linalg.vector_norm(together(norms)) if norms else None


def together(scalars: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.to(scalars[0].device) for one in scalars])


def _common_factor(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The ratio of all norms together, and whether that of any norm differs from it: then no
    scaling explains the change."""
    old, new = together(before), together(after)
    factor = torch.linalg.vector_norm(new) / torch.linalg.vector_norm(old)
    return factor, ((new - factor * old).abs() > 0.01 * factor * old).any()


def _tensors(output: Any, is_whole: bool = True) -> list[Tensor]:
    """The tensors with a graph in a model's output, also in nested dictionaries, lists, tuples."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad else []
    if isinstance(output, dict):
        output = output.values()
    elif is_whole and not hasattr(output, "__iter__"):  # an object of the model's own
        output = vars(output).values()
    elif not isinstance(output, list | tuple):
        return []
    return [tensor for part in output for tensor in _tensors(part, False)]
