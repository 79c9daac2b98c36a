"""Learning rates around the expected best one of each cell: the resolver ``${near_best:...}``.

The best learning rate depends on p, alpha and rank, by orders of magnitude in a study of several
alphas. A grid that all cells share would waste most of its cells. In an experiment

    optimizer.lr: "${near_best:-1,85,9.8,10},${near_best:0,85,9.8,10}"

sweeps half of and once the expected best rate of each cell. A cell's identity and record hold the
number that results. The four arguments are

1. the distance from the expected best rate, in doublings;
2. ``move``, 3. ``r_sign`` and 4. ``crossover`` of :func:`expected_best`.
"""

import math

from omegaconf import DictConfig, OmegaConf

from study.errors import StudyError
from study.vocabulary import scaling

DIGITS = 3
"""The significant digits of a rate. Machines round powers and roots differently in the last place;
a rate, and with it the identity of a cell, is the same on all of them."""


def expected_best(
    gamma: float, rank: float, steps: int, move: float, r_sign: float, crossover: float
) -> float:
    """The constant learning rate of a sign-like rule that moves the adapter output by ``move``.

    After ``steps`` steps at ``lr``, A has moved by ``rho = crossover lr steps`` beside its init,
    and the output by ``lr steps gamma sqrt(r (r + r_sign - 1)) (1 + rho)``
    (:mod:`study.analysis.rate_crossover`). ``move`` and ``crossover`` are read off a first try,
    ``r_sign`` is that of the probes at step 1.
    """
    asked = move / (gamma * math.sqrt(rank * (rank + r_sign - 1)))
    # The positive root x = lr steps of crossover x^2 + x = asked, without cancellation.
    return 2 * asked / (1 + math.sqrt(1 + 4 * crossover * asked)) / steps


def _near_best(
    doublings: float, move: float, r_sign: float, crossover: float, *, _root_: DictConfig
) -> float:
    adapter, steps = _root_.adapter, int(_root_.train.steps)
    given = {"move": move, "r_sign": r_sign, "crossover": crossover, "rank": adapter.rank}
    for name, value in given.items():
        if not 0 < float(value) < math.inf:
            raise StudyError(
                f"near_best needs a positive, finite {name}, not {value}: "
                "write ${near_best:DOUBLINGS,MOVE,R_SIGN,CROSSOVER}"
            )
    rule, power = scaling.named_rule(str(adapter.scaling), adapter.exponent)
    gamma = scaling.gamma(rule, float(adapter.alpha), float(adapter.rank), power)
    rate = expected_best(gamma, float(adapter.rank), steps, move, r_sign, crossover)
    return float(f"{rate * 2.0**doublings:.{DIGITS - 1}e}")


OmegaConf.register_new_resolver("near_best", _near_best, replace=True)
