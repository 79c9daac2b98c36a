"""The loss of target tokens, with logits for only some of them at a time.

Full logits are ``[targets, vocabulary]``: for 4096 targets and 49152 tokens 0.8 GB in float32, and their softmax and
gradient as much again. The head is frozen, so all that is wanted from them is each loss and the gradient of its hidden
state, and both are known a chunk at a time in the forward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Logits = Callable[[Tensor], Tensor]
LOGITS = {"cpu": 2**24, "cuda": 2**28}
"""The most logits that exist at once, by device: 64 MB of float32 on a CPU; on a GPU chunks are few and large."""


def target_losses(hidden_Nd: Tensor, targets_N: Tensor, logits: Logits, vocabulary: int) -> Tensor:
    """The negative log-likelihood of every target, ``[N]`` float32, nats; ``logits``: ``[n, d] -> [n, V]``, frozen.

    What each costs is the head's product once forward and once backward, as without chunks. Gradients reach
    ``hidden_Nd`` alone.
    """
    chunk = max(1, LOGITS.get(hidden_Nd.device.type, LOGITS["cuda"]) // vocabulary)
    return _Chunked.apply(hidden_Nd, targets_N, logits, chunk)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_Nd: Tensor,
        targets_N: Tensor,
        logits: Callable[[Tensor], Tensor],
        chunk: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, gradients = [], []
        for hidden_nd, targets_n in zip(
            hidden_Nd.split(chunk), targets_N.split(chunk), strict=True
        ):
            with torch.set_grad_enabled(wanted):
                hidden_nd = hidden_nd.detach().requires_grad_(wanted)
                nll_n = cross_entropy(logits(hidden_nd).float(), targets_n, reduction="none")
                if wanted:
                    gradients += torch.autograd.grad(nll_n.sum(), hidden_nd)
            losses.append(nll_n.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, dnll_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_Nd,) = ctx.saved_tensors
        return gradient_Nd * dnll_N.unsqueeze(1).to(gradient_Nd.dtype), None, None, None
