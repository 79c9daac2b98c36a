"""How the drawn factor of an adapter gets its values: one function for each init."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Draw = Callable[[int, int, torch.Generator], Tensor]
"""Draws a factor ``[R, fan]`` from R, fan and a generator, float32 on the CPU. ``fan`` is D if A is
drawn. If B is, fan is O and B the transpose of the draw."""


def generator_for(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator keyed by a seed and a name, so no draw depends on the other cells of a pack."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little", signed=True))


def _kaiming(rank: int, fan: int, stream: torch.Generator) -> Tensor:
    """PEFT's draw: Kaiming uniform with a = sqrt(5), U(-1/sqrt(fan), 1/sqrt(fan))."""
    bound = 1 / math.sqrt(fan)
    return torch.empty(rank, fan).uniform_(-bound, bound, generator=stream)


DRAWS: dict[str, Draw] = {
    **dict.fromkeys(("kaiming", "init_b"), _kaiming),
    "scaled": lambda rank, fan, stream: _kaiming(rank, fan, stream).div_(math.sqrt(rank)),
    "gaussian": lambda rank, fan, stream: torch.empty(rank, fan).normal_(
        std=1 / math.sqrt(fan), generator=stream
    ),
    "orthogonal": lambda rank, fan, stream: nn.init.orthogonal_(
        torch.empty(rank, fan), generator=stream
    ),
}
"""The function of every init, by name."""
