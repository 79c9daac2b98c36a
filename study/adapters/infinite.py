"""Infinite rank: the limit of a run as the rank grows, as a separate run (docs/infinite-rank.md).

Under SGD with rsLoRA the limit is an ordinary adapter whose A, the identity, is not trained. Under
sign-like rules with LoRA a run of a large rank with an independent A replaces it. Full fine-tuning
is the same adapter with gamma 1: its B is the change of the weight.
"""

import math
from typing import Any

import torch

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair
from study.vocabulary.inits import INITS
from study.vocabulary.quantities import BACKWARD, FORWARD

STAND_IN = 16
"""The rank that replaces infinite rank under sign-like rules, over the highest rank measured."""
EPS = 1e-20
"""Replaces eps -> 0: far below any gradient, but not 0, because the first ones of a factor are."""

SITES = (*FORWARD, *BACKWARD, "delta_w")
"""The sites that can be measured. The factors have infinitely many entries."""


class InfiniteRankBank(LoraBank):
    """A frozen linear with one adapter of infinite rank.

    The drawn factor is the identity and has a gradient of 0. ``gamma`` in its spec is the limit of
    ``gamma * sqrt(rank)``, rsLoRA's alpha. It costs as much as an adapter of rank D (Init[B]: O).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        A_kRD, B_kOR = self.buckets.parameters()
        fixed = A_kRD if INITS[self.specs[0].init].drawn == "A" else B_kOR
        # With a gradient of 0, rather than none, the optimizer still decays it.
        fixed.register_hook(torch.zeros_like)

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        init = INITS[spec.init]
        if init.drawn == "A":
            A, B, fan = torch.eye(d), torch.zeros(o, d), d
        else:
            A, B, fan = torch.zeros(o, d), torch.eye(o), o
        return LoraPair(A, B, spec.gamma * math.sqrt(init.numerator / fan))


class FullBank(InfiniteRankBank):
    """A frozen linear whose weight is trained itself: ``W0 + B``, with ``B: [O, D]`` in float32.

    B has the gradient of the weight and starts at 0. So any optimizer without weight decay steps
    it as it would step the weight. ``W0`` keeps its precision; B is float32 above it.
    """

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        """The identity, zeros and gamma 1, whatever ``spec`` says."""
        return LoraPair(torch.eye(d), torch.zeros(o, d), 1.0)
