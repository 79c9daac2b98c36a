"""A pretend accelerator: it runs the code paths of a GPU, with real numbers, on a CPU.

torch's PrivateUse1 device (an experimental interface of torch) is registered as ``pretend``. A
tensor on it is a :class:`PretendTensor`, which holds its numbers in a CPU tensor. As on CUDA,

- an operation on tensors of both devices raises ``RuntimeError``;
- the device computes later than the host asks. A copy to the host with ``non_blocking`` holds NaN
  until the device has come to the event after it. The device is one event behind the host: it has
  reached an event once the host has recorded the next one, or has waited for it;
- the host waits for the device in some operations: ``.item()``, ``bool(tensor)``, ``nonzero``, a
  mask as an index, every copy between the devices that is not ``non_blocking``, and an event that
  the device has not reached. :attr:`PretendGpu.waits` counts them, by operation and caller.

Call :func:`register` and :func:`move`, and then run anything inside ``with PretendGpu() as gpu``.
"""

import collections
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
ROOT = Path(__file__).parents[1]

_WAITS = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"),
    *("aten::is_nonzero", "aten::_unique2", "aten::unique_dim", "aten::repeat_interleave"),
    *("aten::_linalg_eigh", "aten::_linalg_svd"),  # the host reads whether they converged
}
_COPIES = {"aten::_to_copy", "aten::copy_"}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_TAKES_BOTH = _COPIES | _INDEXING | {"aten::lift_fresh"}
"""Operations that may have tensors of both devices."""


def register() -> torch.device:
    """Register the device, once in a process. Call it before the first backward pass: autograd
    makes the queues of its devices then.
    """
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    return torch.device(NAME, 0)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to the device, in place, with ``requires_grad`` of its parameters.

    ``model.to(device)`` can't: a parameter would have to change its class.
    """
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                moved = nn.Parameter(weight.detach().to(device), weight.requires_grad)
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


class PretendGpu(TorchDispatchMode):
    """The device while it is switched on. Factories such as ``torch.zeros`` reach it only then;
    ``torch.tensor(data, device=...)``, which would wait for a copy, raises.

    - ``waits``: how often the host had to wait, by operation and the caller in this repository;
    - ``sent``: how many copies to the host were begun without a wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()
        self.sent = 0

    def __enter__(self) -> Self:
        _Device.counting = self
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        _Device.counting = None
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = not any(isinstance(x, PretendTensor) for x in pytree.tree_leaves((args, kwargs)))
        elsewhere = here and not _is_on_device(kwargs.get("device"))
        return func(*args, **kwargs) if elsewhere else _run(func, args, kwargs)


class PretendTensor(Tensor):
    """A tensor on the device. ``raw`` holds its numbers on the CPU."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Self:
        like = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        device = torch.device(NAME, 0)
        tensor = torch.Tensor._make_wrapper_subclass(cls, raw.shape, device=device, **like)
        tensor.raw = raw
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """torch would read the storage, which a wrapper does not have."""
        _Device.wait("aten::tolist")
        return self.raw.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"pretend({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Device:
    """What the device still has to do: the copies to the host, in order, up to each event."""

    counting: PretendGpu | None = None
    copies: ClassVar[list[tuple[Tensor, Tensor]]] = []
    last: "Event | None" = None

    @classmethod
    def wait(cls, operation: str) -> None:
        """The host waits until the device has done everything."""
        if cls.counting is not None:
            cls.counting.waits[f"{operation} at {_caller()}"] += 1
        if cls.last is not None:
            cls.last.reach()
        _arrive(cls.copies)

    @classmethod
    def send(cls, target: Tensor, numbers: Tensor) -> Tensor:
        """Begin to copy to ``target``, on the host."""
        if cls.counting is not None:
            cls.counting.sent += 1
        if target.is_floating_point():
            target.fill_(torch.nan)
        cls.copies.append((target, numbers.clone()))
        return target


def _arrive(copies: list[tuple[Tensor, Tensor]]) -> None:
    for target, numbers in copies:
        target.copy_(numbers)
    copies.clear()


class Event:
    """As ``torch.cuda.Event``: a place in the device's work."""

    def __init__(self) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._reached = False

    def record(self, stream: Any = None) -> None:
        """The device comes to the event before this one now."""
        if _Device.last is not None:
            _Device.last.reach()
        self._copies, _Device.copies = _Device.copies, []
        _Device.last = self

    def query(self) -> bool:
        """Whether the device has reached the event."""
        return self._reached

    def synchronize(self) -> None:
        """Wait until the device has reached the event."""
        if not self._reached:
            _Device.wait("event.synchronize")
            self.reach()

    def reach(self) -> None:
        """The device comes to the event."""
        _arrive(self._copies)
        self._reached = True


class _Module(backend_registration._DummyBackendModule):
    """The functions of ``torch.pretend``, as those of ``torch.cuda``."""

    Event = Event

    def current_stream(self, device: Any = None) -> None:
        """There is only one."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _is_on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _caller() -> str:
    """The innermost line of this repository, without this file."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        is_ours = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        if is_ours and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"


_KERNELS: dict[str, Callable[..., Any]] = {
    "aten::bmm.dtype": lambda a, b, dtype: torch.bmm(a.to(dtype), b.to(dtype)),
    "aten::bmm.dtype_out": lambda a, b, dtype, out: torch.bmm(a.to(dtype), b.to(dtype), out=out),
}
"""Operations of accelerators that the CPU has not, by name and overload."""


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute on the CPU what was asked of the device. Checks devices, and counts waits."""
    name = func._schema.name
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, PretendTensor)]
    # As on CUDA, a scalar on the CPU may go with any device.
    here = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim() > 0]
    if there and here and name not in _TAKES_BOTH:
        raise RuntimeError(f"{name}: tensors on the CPU and on {NAME} in one operation")
    raw_args, raw_kwargs = pytree.tree_map_only(PretendTensor, lambda x: x.raw, (args, {**kwargs}))
    device = raw_kwargs.pop("device", None)
    stays = bool(there) if device is None else _is_on_device(device)
    waits = bool(there) and name in _WAITS
    if name in _INDEXING and there:  # by a mask, whose true entries are counted, or from the host
        indices = [x for x in pytree.tree_leaves(args[1]) if x is not None]
        waits = bool(here) or any(x.dtype in (torch.bool, torch.uint8) for x in indices)
    if name in _COPIES:
        into = name == "aten::copy_"  # the target comes first
        stays = isinstance(args[0], PretendTensor) if into else stays
        crosses = stays != isinstance(args[into], PretendTensor)
        waits = crosses and not (kwargs.get("non_blocking") or (into and True in args[2:]))
        if crosses and not waits and not stays:
            source = raw_args[into]
            target = args[0] if into else torch.empty_like(source, dtype=kwargs.get("dtype"))
            return _Device.send(target, source)
    if waits:
        _Device.wait(name)
    if device is not None:
        raw_kwargs["device"] = torch.device("cpu")
    raw_kwargs.pop("pin_memory", None)
    kernel = _KERNELS.get(f"{name}.{func._schema.overload_name}", func)
    result = kernel(*raw_args, **raw_kwargs)
    if not stays:
        return result
    known = {id(x.raw): x for x in there}  # in-place operations return what they were given
    return pytree.tree_map_only(
        Tensor, lambda x: known[id(x)] if id(x) in known else PretendTensor(x), result
    )
