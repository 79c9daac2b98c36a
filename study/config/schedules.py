"""What a configuration's short words stand for: the steps that are measured and evaluated, the members of a choice."""

import math

from study.config.types import CellConfig
from study.errors import StudyError

MOST_DOUBLINGS = 16
"""A layer of 65536 features: none is wider."""


def probe_steps(config: CellConfig) -> tuple[int, ...]:
    """The steps that are measured, ascending; listed steps beyond the end of the run are left out."""
    probes, last = config.probes, config.train.steps
    if probes.every is not None and probes.steps is not None:
        raise StudyError(
            f"probes.every={probes.every} and probes.steps={probes.steps} are both set: set one to null"
        )
    if probes.every is not None:
        return tuple(sorted({*range(0, last + 1, probes.every), last}))
    if probes.steps is None:
        return ()
    if probes.steps == "log":
        return tuple(sorted({0, last, *(2**i for i in range(last.bit_length()) if 2**i <= last)}))
    listed = [probes.steps] if isinstance(probes.steps, int) else probes.steps
    if isinstance(listed, str) or not all(
        isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in listed
    ):
        raise StudyError(
            f"probes.steps={probes.steps} is no schedule: give 'log' or a list of steps such as [0,1,2,4]"
        )
    return tuple(sorted({s for s in listed if s <= last}))


def truncation_ranks(config: CellConfig, most: float = math.inf) -> tuple[float, ...]:
    """The ranks that the trained adapter is cut to, ascending, its own last; empty where none is asked for.

    ``log``: 0, 1, 2, 4, ... Ranks from ``most`` on, the largest that a layer's ``delta_w`` can have, are left out.
    """
    asked, own = config.probes.truncations, config.adapter.rank
    if asked is None:
        return ()
    if asked == "log":
        asked = [0, *(2**i for i in range(MOST_DOUBLINGS))]
    asked = [asked] if isinstance(asked, int) else asked
    if isinstance(asked, str) or not all(
        isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in asked
    ):
        raise StudyError(
            f"probes.truncations={asked} are no ranks: give 'log', a list such as [1,4,16], or null"
        )
    return (*sorted({k for k in asked if k < min(own, most)}), own)


def eval_steps(config: CellConfig) -> frozenset[int]:
    """The steps at which the held-out loss is taken: the first, the last and every ``train.eval_every``-th; 0: none."""
    last, every = config.train.steps, config.train.eval_every
    if every == 0:
        return frozenset()
    return frozenset({0, last} | (set(range(0, last + 1, every)) if every else set()))
