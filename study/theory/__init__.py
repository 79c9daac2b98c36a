"""Predictions: scaling exponents with rank, finite-rank curves, and the p at which each is flat.

Setting: one frozen linear layer ``y = W0 x + gamma B A x``, ``A: [R, D]``, ``B: [O, R]``,
``gamma = alpha * r**-p``. Init[A] draws the entries of A iid with variance ``v`` proportional to
``r**-q`` and sets ``B = 0`` (PEFT's Kaiming: uniform, ``v = 1/(3 D)``, ``q = 0``). Init[B] is its
mirror. ``G = sum_n g_n x_n^T`` is the gradient of the loss with respect to the layer's weight, and
``g = dL/dy``. All results are to leading order in the learning rate (*lazy*), for steps 0 to 3. Row
``step = s`` has the weights after ``s`` updates, so a quantity that contains the trained factor is
0 at step 0. A step with a learning rate of 0 (the first of some warmups) makes no update: count
steps from the first one that does.

In the lazy regime every quantity is a sum over the ``r`` components of the adapter, and the
components are iid. A sum of r iid vectors has second moment ``r (r - 1 + rho)`` times the squared
norm of the mean of one of them, with ``rho = E|one|^2 / |E one|^2``. It is linear in r if the mean
is 0 (gradients, updates), and quadratic far above the crossover ``rho`` if it is not
(``adapter_out``, ``delta_w``, ``adapter_in_grad``). Optimizers differ in one respect: an SGD update
contains ``gamma * sd(A)``, and a sign-like update contains neither. Muon's (*spectral*) contains
neither, and is no sum of independent components: its singular values are equal.

**The paper and this table.** Kalajdzievski 2023 (arXiv 2312.03732), definition 3.1 and theorem 3.2:
an adapter is rank-stabilized (the moments of its outputs, and of the gradients into its inputs,
stay Theta_r(1)) if and only if ``gamma`` is in Theta_r(1/sqrt(r)), "at any point in the learning
trajectory". Appendix A proves it for SGD from ``E[A^T A] = r v I``, that is, for the mean over the
init. The derivations here differ from it as follows:

===================  ============================  ================================================
subject              the paper                     here
===================  ============================  ================================================
optimizer            SGD; experiments under AdamW  updates of sign-like rules do not contain gamma
                                                   and sd(A): p* = 1
moments              gamma^2 r, from the mean      gamma^2 sqrt(r (r + 1 + r_align)): below r_align,
                     over A                        p* is 1/4
condition 1 (out)    inputs iid                    iid inputs have r_align of about D; training
                                                   inputs far less
condition 2 (back)   same rank law as condition 1  crossover at D for any alignment (Init[A])
gradient norms       read as the backward          gradients of the parameters (figures 3, 4) are a
                     condition                     different quantity: gamma sqrt(r) at step 0 under
                                                   every optimizer
trajectory           every n, as r grows           leading order in the learning rate, steps 0 to 3
variance of A        independent of r (q = 0)      any q; its B.3 (q = 1, p = 1) gives descent r^-2
                                                   under SGD
===================  ============================  ================================================

Numbers only: numpy, no torch.
"""

from study.theory.asymptotics import PLAIN, Modifiers, Prediction, family, predict
from study.theory.curves import (
    crossover,
    curve,
    distance_to_infinite_rank,
    log_bias,
    mean_log_curve,
    predicted_exponent,
    slope,
    stable_exponent,
)
from study.theory.layers import Layer, measure_layer
