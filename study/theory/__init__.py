"""Predictions: scaling exponents with rank, finite-rank curves, and the p at which each is flat.

Setting: one frozen linear layer ``y = W0 x + gamma B A x``, ``A: [R, D]``, ``B: [O, R]``,
``gamma = alpha * r**-p``. Init[A] draws the entries of A iid with variance ``v`` proportional to
``r**-q`` and sets ``B = 0`` (PEFT's Kaiming: uniform, ``v = 1/(3 D)``, ``q = 0``). Init[B] is its
mirror. ``G = sum_n g_n x_n^T`` is the gradient of the loss with respect to the layer's weight, and
``g = dL/dy``. All results are to leading order in the learning rate (*lazy*), for steps 0 to 3. Row
``step = s`` has the weights after ``s`` updates, so a quantity that contains the trained factor is
0 at step 0. A step with a learning rate of 0 (the first of some warmups) makes no update. Count
steps from the first update.

docs/derivations.md has the derivations, and where they differ from Kalajdzievski 2023. Numbers
only: numpy, no torch.
"""

from study.theory.asymptotics import PLAIN, Modifiers, family, predict
from study.theory.curves import (
    crossover,
    curve,
    distance_to_infinite_rank,
    log_bias,
    mean_log_curve,
    move,
    power_of_gamma,
    predicted_exponent,
    slope,
    stable_exponent,
)
from study.theory.layers import Layer
