"""What PEFT's dropout keeps of its inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from study.probes.recorder import in_backward


class DropoutSeen:
    """Two hooks on a dropout module, which call ``see`` with what its inputs are multiplied by.

    That is 0 or ``1 / (1 - p)``, ``[1, N, D]``. It is drawn again from the state that the random
    stream had before the module ran, and the stream goes on as if nothing had been drawn.
    """

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        self.see = see
        self._before: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The hook before the module."""
        runs_first = module.training and not in_backward()  # not again, under checkpointing
        self._before = _stream(args[0].device).get_rng_state() if runs_first else None

    @torch.no_grad()
    def after(self, module: Any, args: tuple[Any, ...], _: Tensor) -> None:
        """The hook after the module."""
        if self._before is None:
            return
        stream = _stream(args[0].device)
        after = stream.get_rng_state()
        stream.set_rng_state(self._before)
        kept = dropout(torch.ones_like(args[0]), module.p)
        stream.set_rng_state(after)
        self.see(kept.reshape(1, -1, kept.shape[-1]))


def _stream(device: torch.device) -> Any:
    """Where torch keeps the state of a device's random stream."""
    return torch if device.type == "cpu" else torch.get_device_module(device)
