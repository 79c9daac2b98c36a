"""What theory predicts: exponents in the rank, the finite-rank curves behind them, and the p at which each is flat.

Setting: one frozen linear layer ``y = W0 x + gamma B A x``, ``A: [R, D]``, ``B: [O, R]``, ``gamma = alpha * r**-p``.
Init[A] draws A's entries iid with variance ``v`` proportional to ``r**-q`` and sets ``B = 0`` (PEFT's Kaiming: uniform,
``v = 1/(3 D)``, ``q = 0``); Init[B] is its mirror. ``G = sum_n g_n x_n^T`` is the gradient of the loss with respect to
the layer's weight, ``g = dL/dy``. Everything is leading order in the learning rate (*lazy*), for steps 0 to 3; row
``step = s`` has the weights after ``s`` updates, so a quantity made of the trained factor is 0 at step 0. A step whose
learning rate is 0 (some warmups start so) is no update: count from the first one that is.

The whole of it rests on one remark: in the lazy regime every quantity is a sum over the ``r`` components of the
adapter, and the components are iid. A sum of r iid vectors has second moment ``r (r - 1 + rho)`` times the squared norm
of one's mean, where ``rho = E|one|^2 / |E one|^2``: linear in r where the mean is 0 (gradients, updates), quadratic far
above the crossover ``rho`` where it is not (``adapter_out``, ``delta_w``, ``adapter_in_grad``). An SGD update carries
``gamma * sd(A)``, a sign-like update carries neither; that is all the difference between optimizers.

- :mod:`~study.theory.asymptotics`: the table of exponents, what modifies it, and where nothing is predicted;
- :mod:`~study.theory.curves`: the same at finite ranks, the alignments a curve needs, slopes, and p*;
- :mod:`~study.theory.columns`: predictions for the rows of an ``exponents`` table.

**The paper and this table.** Kalajdzievski 2023 (arXiv 2312.03732), definition 3.1 and theorem 3.2: an adapter is
rank-stabilized (moments of its outputs, and the gradients into its inputs, stay Theta_r(1)) if and only if ``gamma`` is
in Theta_r(1/sqrt(r)), "at any point in the learning trajectory". Appendix A proves it for SGD from
``E[A^T A] = r v I``, that is, for the mean over the init. Where that and the derivations here differ:

===================  =================================  ==============================================================
what                 the paper                          here
===================  =================================  ==============================================================
optimizer            SGD; experiments under AdamW       sign-like rules drop gamma and sd(A) from an update: p* = 1
moments              gamma^2 r, from the mean over A    gamma^2 sqrt(r (r + 1 + r_align)): below r_align, p* is 1/4
condition 1 (out)    inputs iid                         iid inputs have r_align of about D; training inputs far less
condition 2 (back)   same rank law as condition 1       crosses at D whatever the alignment (Init[A])
gradient norms       read as the backward condition     gradients of the parameters (figures 3, 4) are another
                                                        quantity: gamma sqrt(r) at step 0 under every optimizer
trajectory           every n, as r grows                leading order in the learning rate, steps 0 to 3
variance of A        free of r (q = 0)                  any q; its B.3 (q = 1, p = 1) gives descent r^-2 under SGD
===================  =================================  ==============================================================

Numbers only: numpy, no torch.
"""

from study.theory.asymptotics import (
    PLAIN,
    SITES,
    STATS,
    Modifiers,
    Prediction,
    family,
    predict,
)
from study.theory.columns import predicted_exponent, predicted_exponents
from study.theory.curves import (
    Layer,
    crossover,
    curve,
    distance_to_infinite_rank,
    log_bias,
    measure_layer,
    slope,
    stable_exponent,
)

__all__ = [
    "PLAIN",
    "SITES",
    "STATS",
    "Layer",
    "Modifiers",
    "Prediction",
    "crossover",
    "curve",
    "distance_to_infinite_rank",
    "family",
    "log_bias",
    "measure_layer",
    "predict",
    "predicted_exponent",
    "predicted_exponents",
    "slope",
    "stable_exponent",
]
