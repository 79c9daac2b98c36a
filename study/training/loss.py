"""The loss of target tokens, with logits for a chunk of them at a time.

Full logits are ``[targets, vocabulary]``. For 4096 targets and 49152 tokens they take 0.8 GB in
float32, and their softmax and gradient as much again. The head is frozen, so only each loss and the
gradient of its hidden state are needed. The forward pass computes both, chunk by chunk.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Logits = Callable[[Tensor], Tensor]
LOGITS = {"cpu": 2**24, "cuda": 2**28}
"""The most logits that exist at once, by device type: 64 MB of float32 on a CPU, 1 GB on a GPU."""


def target_losses(hidden_Nd: Tensor, targets_N: Tensor, logits: Logits, vocabulary: int) -> Tensor:
    """The negative log-likelihood of every target in nats, ``[N]`` float32.

    ``logits``: the frozen head, ``[n, d] -> [n, V]``. Costs one product of the head forward and one
    backward, as without chunks. Gradients reach only ``hidden_Nd``.
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
