"""Infinite rank: the limit of a run as the rank grows, as a separate run.

**SGD, p = 1/2 (rsLoRA).**

Let A0 have iid entries of variance v, ``B0 = 0``, ``gamma = alpha / sqrt(r)``. Every step of SGD
keeps ``B^T = gamma A0 Q`` and ``A = A0 P``, so ``delta_w = gamma^2 Q^T S P`` with ``S = A0^T A0``.
As r grows, ``S / r -> v I`` and ``gamma^2 S -> alpha^2 v I``, with relative fluctuations of order
``r^-1/2``. Then:

- the gradient of P, ``gamma^2 Q G``, is of order 1/r, so ``P = a I`` at all times. The scalar a
  starts at 1 and changes only by weight decay: decoupled, or coupled (through the momentum buffer);
- the gradient of Q is ``P G^T = a G^T``. Clipping multiplies it by the same factor. Q has its own
  decay, momentum and learning rate (LoRA+);
- ``|A_grad|^2 = gamma^4 <Q G, S Q G>`` is of order 1/r, and ``|B_grad|^2 -> alpha^2 v a^2 |G|^2``:
  the gradient norm that clipping sees is finite, and it is the norm of B's gradient alone.

With ``c = lim gamma sqrt(r v) = alpha sqrt(v)`` and ``B' = c Q^T`` this is an ordinary adapter
whose A is not trained:

    delta_w = c B' A',  A' = a I,  B'_grad = c a G,  A'_grad = 0.

It is trained by the same optimizer, schedule and clipping as finite ranks. Without decay, ``a = 1``
and every step is a step of full fine-tuning of W at the learning rate ``lr c^2 = lr alpha^2 v``.
With decay it is not *decayed* full fine-tuning: each step is weakened by ``a^2``, and delta_w
shrinks through both factors, hence twice as fast under decoupled decay.

Init[B] is the mirror image: ``B' = b I``, ``[O, O]``, is not trained, and v is the variance of B.
Finite ranks reach the limit at a fixed step as the rank grows. The motion of A, of order 1/r per
step, makes long or fast runs deviate from the law ``r^-1/2``.

**Sign-like rules with eps -> 0, p = 1 (LoRA).** An update of an entry depends on the history of its
gradient up to a scale, and gamma is only a scale. So row a_k of A and column b_k of B, whose
gradients are ``gamma G^T b_k`` and ``gamma G a_k``, depend on their own start and on the weight
gradients G. ``delta_w = alpha / r sum_k b_k a_k^T`` is a mean over r draws of the start. Its limit
is the expectation (a mean-field limit), ``alpha E[b a^T]``, in which A moves as fast as B.

- The expectation has a closed form for one step only. For a Gaussian A, it is
  ``-lr alpha sqrt(2 v / pi)`` times the rows of G, each scaled to length 1. So a run of a large
  rank R, with an independent A, replaces the limit. To leading order both runs deviate from the
  limit by independent means of variances c / r and c / R. Their mean squared distance is then
  ``1 + r / R`` times that of the run from the limit. With R = 16 r this is 3 % of the distance. It
  is divided out (:func:`study.analysis.distances.compare`). The squared norm of the run of rank R
  is larger than that of the limit, by ``1 + c / R`` in units of the limit. It lowers all relative
  distances by the same factor, which is 1 + 1/16 of the squared distance at the highest rank.
- At a fixed eps the limit is trivial, because gradients fall as 1/r: below eps an update is
  proportional to its gradient, as under SGD, and goes to 0. Its difference from the limit of
  eps -> 0 grows as ``eps r``, while the fluctuations fall as r^-1/2. The distance is smallest at a
  rank that falls as ``eps^(-2/3)``.

There is no limit, or a trivial one, for other exponents, and for inits whose variance falls with
the rank.
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
"""Replaces eps -> 0: far below any gradient. It is not 0, because the first gradient of one factor
is 0."""

SITES = (*FORWARD, *BACKWARD, "delta_w")
"""The sites that can be measured. The factors have infinitely many entries."""


class InfiniteRankBank(LoraBank):
    """A frozen linear with one adapter of infinite rank.

    The drawn factor is the identity and has a gradient of 0. ``gamma`` in its spec is the limit of
    ``gamma * sqrt(rank)``, rsLoRA's alpha. It costs as much as an adapter of rank D (Init[B]: O).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.specs) != 1 or not math.isinf(self.specs[0].rank):
            raise ValueError("a cell of infinite rank needs a fold of its own")
        A_kRD, B_kOR = self.buckets.parameters()
        fixed = A_kRD if INITS[self.specs[0].init].drawn == "A" else B_kOR
        # With a gradient of 0, rather than none, the optimizer still decays it.
        fixed.register_hook(torch.zeros_like)

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        init = INITS[spec.init]
        if init.q != 0:
            raise ValueError(
                f"init {spec.init!r} has no limit of infinite rank: its variance falls with rank"
            )
        fan = d if init.drawn == "A" else o
        gamma = spec.gamma * math.sqrt(init.variance(fan))
        if init.drawn == "A":
            return LoraPair(torch.eye(d), torch.zeros(o, d), gamma)
        return LoraPair(torch.zeros(o, d), torch.eye(o), gamma)
