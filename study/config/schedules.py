"""Convert epochs, shares and words such as ``log`` to steps and ranks."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from study.config.types import CellConfig
from study.config.values import is_whole
from study.errors import StudyError, given


def resolved(config: CellConfig, rows: Callable[[], int]) -> CellConfig:
    """``config`` with whole numbers for ``train.steps`` and ``train.warmup``, from epochs and
    shares, as in the Trainer of transformers 5: an epoch has ceil(ceil(rows / batch_size) /
    accumulation) steps. ``rows`` counts the training rows; it is called for epochs only."""
    train = config.train
    steps, warmup = train.steps, train.warmup
    if train.epochs is not None:
        batches = math.ceil(rows() / train.batch_size)
        steps = math.ceil(train.epochs * math.ceil(batches / train.accumulation))
    if isinstance(warmup, float):
        warmup = math.ceil(steps * warmup)
    return replace(config, train=replace(train, steps=steps, warmup=warmup))


def probe_steps(config: CellConfig) -> tuple[int, ...]:
    """The steps that are measured, ascending. Listed steps after the end of the run are dropped."""
    probes, last = config.probes, config.train.steps
    if probes.every is not None and probes.steps is not None:
        raise StudyError("probes.every and probes.steps are both set: set one to null")
    if probes.every is not None:
        return tuple(sorted({*range(0, last, probes.every), last}))
    if probes.steps is None:
        return ()
    steps = {0, last, *_powers(last)} if probes.steps == "log" else _whole_numbers(probes.steps)
    if steps is None:
        what = f"probes.steps={given(probes.steps)} is not a schedule"
        raise StudyError(f"{what}: give log, or a list of steps such as [0,1,2,4]")
    return tuple(sorted(step for step in steps if step <= last))


def late_probes(config: CellConfig) -> str | None:
    """The line about listed steps after the end of the run, which are not measured, if any."""
    listed, last = _whole_numbers(config.probes.steps) or set(), config.train.steps
    if late := sorted(step for step in listed if step > last):
        steps = ", ".join(map(str, late[:5])) + (", ..." if len(late) > 5 else "")
        return f"probes.steps: not measured at {steps}, after the last step (train.steps={last})"
    return None


def truncation_ranks(config: CellConfig, most: float = math.inf) -> tuple[float, ...]:
    """The ranks at which the trained adapter's held-out loss is measured, ascending. Its own rank
    is the last. Empty without truncations. ``log`` means 0, 1, 2, 4, ... Ranks from ``most`` on,
    the largest that a layer's ``delta_w`` can have, are dropped."""
    asked, own = config.probes.truncations, config.adapter.rank
    if asked is None:
        return ()
    # No layer has more features than the last of these powers of two.
    ranks = {0, *_powers(1 << 15)} if asked == "log" else _whole_numbers(asked)
    if ranks is None:
        what = f"probes.truncations={given(asked)}: ranks must be"
        raise StudyError(f"{what} log, a list such as [1,4,16], or null")
    return (*sorted(rank for rank in ranks if rank < min(own, most)), own)


def eval_steps(config: CellConfig) -> frozenset[int]:
    """The steps with a held-out loss: the first, the last and every ``train.eval_every``-th, if
    any."""
    last, every = config.train.steps, config.train.eval_every
    if every == 0:
        return frozenset()
    return frozenset({0, last, *(range(0, last, every) if every else ())})


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


def _whole_numbers(value: Any) -> set[int] | None:
    """``value``, a number or a list, as whole numbers from 0; None for anything else."""
    listed = value if isinstance(value, list) else [value]
    are_whole = all(is_whole(number) and number >= 0 for number in listed)
    return set(listed) if are_whole else None
