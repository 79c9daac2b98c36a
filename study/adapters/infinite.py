"""Infinite rank: the limit that rsLoRA's SGD runs converge to as the rank grows, as a run of its own.

Let A0 have iid entries of variance v, ``B0 = 0``, ``gamma = alpha / sqrt(r)``, and write ``B^T = gamma A0 Q``,
``A = A0 P`` (:mod:`study.adapters.rank_free`), so that ``delta_w = gamma^2 Q^T S P`` with ``S = A0^T A0``. As r grows,
``S / r -> v I`` and ``gamma^2 S -> alpha^2 v I``, with relative fluctuations of order ``r^-1/2``. Then

- P's gradient, ``gamma^2 Q G``, is of order 1/r: from first to last ``P = a I``, a a scalar that starts at 1 and that
  nothing but weight decay moves, coupled (through the momentum buffer, then) or decoupled;
- Q's gradient is ``P G^T = a G^T``, clipped by the same factor, with its own decay, momentum and learning rate (LoRA+);
- ``|A_grad|^2 = gamma^4 <Q G, S Q G>`` is of order 1/r and ``|B_grad|^2 -> alpha^2 v a^2 |G|^2``: clipping sees a
  finite norm, that of B alone.

With ``c = lim gamma sqrt(r v) = alpha sqrt(v)`` and ``B' = c Q^T`` this is an ordinary adapter whose A does not learn:

    delta_w = c B' A',  A' = a I,  B'_grad = c a G,  A'_grad = 0,

trained by the very optimizer, schedule and clipping of the finite ranks. Without decay ``a = 1`` and every step is one
of full fine-tuning of W at ``lr c^2 = lr alpha^2 v``. With it, it is not *decayed* full fine-tuning: delta_w shrinks
through both factors, so twice as fast under decoupled decay, and each step is weakened by ``a^2``.

Init[B] is the mirror: ``B' = b I`` of ``[O, O]`` does not learn, v is B's. The limit is reached at fixed steps as the
rank grows; A's motion, of order 1/r a step, bends the law ``r^-1/2`` for long or fast runs. No limit, or an empty one:
other exponents than p = 1/2, sign-like rules (A moves as fast as B), inits whose variance falls with the rank.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from study.adapters.bank import FACTORED, AdapterSpec, LoraBank, LoraPair
from study.adapters.contraction import Contraction
from study.vocabulary.inits import INITS
from study.vocabulary.quantities import BACKWARD, FORWARD

SITES = (*FORWARD, *BACKWARD, "delta_w")
"""Where there is something to measure: the factors themselves have infinitely many entries."""


class InfiniteRankBank(LoraBank):
    """A frozen linear with one adapter of infinite rank: a pair in which the drawn factor is the identity and has no
    gradient. In its spec, ``gamma`` is the limit of ``gamma * sqrt(rank)``, rsLoRA's alpha.

    Costs what an adapter of rank D (Init[B]: O) costs. Raises ``ValueError`` for more cells than one, and for an init
    without a limit.
    """

    def __init__(
        self,
        base: nn.Module,
        layer: str,
        specs: Sequence[AdapterSpec],
        contraction: Contraction = FACTORED,
    ) -> None:
        super().__init__(base, layer, specs, contraction)
        if len(specs) != 1 or not math.isinf(specs[0].rank):
            raise ValueError("a cell of infinite rank is a fold of its own")
        A_kRD, B_kOR = self.buckets.parameters()
        fixed = A_kRD if INITS[specs[0].init].drawn == "A" else B_kOR
        fixed.register_hook(
            torch.zeros_like
        )  # a gradient of 0 rather than none: the optimizer still decays it

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        init = INITS[spec.init]
        if init.q != 0:
            raise ValueError(
                f"init {spec.init!r} has no limit of infinite rank: its variance falls with the rank"
            )
        fan = d if init.drawn == "A" else o
        factors = (
            (torch.eye(d), torch.zeros(o, d))
            if init.drawn == "A"
            else (torch.zeros(o, d), torch.eye(o))
        )
        return LoraPair(*factors, spec.gamma * math.sqrt(init.variance(fan)))
