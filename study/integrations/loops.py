"""``study.record``: recording of a loop that a user wrote."""

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from study.config import CellConfig, ProbesConfig
from study.errors import StudyError, short
from study.integrations.recording import Recording
from study.integrations.runs import Loop
from study.store.cells import FIRST

LARGEST_SEED = 2**32 - 1
"""The largest that transformers and Lightning accept. torch draws a larger one if none is set."""
UNSEEDED = "No seed was set: the draw of the init is unknown, and the run can't be repeated."


def record(
    results: str | Path,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    steps: str | list[int] | None = "log",
    every: int | None = None,
    sites: str | list[str] = "all",
    stats: str | list[str] = "all",
    tokens: int = 128,
    seed: int | None = None,
    data: str = "data of a script",
    start: int = 0,
    total: int | None = None,
    **varies: Any,
) -> Recording:
    """Write the training inside ``with study.record(...):`` as a cell of a study.

    ``model`` is adapted by PEFT, ``optimizer`` trains it; both may be wrapped by accelerate or be
    parts of a LightningModule. Rank, alpha, rule, targets, init, optimizer, learning rate, betas,
    eps, weight decay, batch size, accumulation and precision are read from them and from the first
    step.

    - ``results``: the study's folder, ``RESULTS/NAME``;
    - ``steps`` or ``every``, ``sites``, ``stats``, ``tokens``: what is measured and when, as under
      ``probes`` of ``study train``. Steps are optimizer steps, with any number of micro-batches;
    - ``seed``: of the adapter's init and of the data; default: the one that torch was seeded with;
    - ``data``: the name of the data in the tables;
    - ``start``: the updates made before, in a loop that goes on from a checkpoint;
    - ``total``: the updates of the whole run; default: as many as there are. Give it if runs of one
      study may end early: runs of different length are not compared;
    - ``varies``: anything else that differs between the runs of a study, by name.

    Gradients are those at the end of the last backward pass. A change between it and the update is
    taken for clipping, and ``clip_factor`` is the ratio of the two norms. A batch that the update
    does not use, because its gradients were cleared or it had no backward pass, is in no row.

    Raises :class:`StudyError` where measurements would be wrong
    (:mod:`study.integrations.refusals`).

    >>> with study.record("results/mine", model, optimizer, steps=[0, 1, 10]):  # doctest: +SKIP
    ...     for batch in loader:
    ...         model(**batch).loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    """
    _check_varies(varies)
    note = ""
    if seed is None:
        seed, note = (torch.initial_seed(), "") if is_seeded() else (0, UNSEEDED)
    by = "script's own loop"
    known = Loop(Path(results), seed, "", data, by, steps=total, note=note, varies=varies)
    asked = ProbesConfig(
        every=every, steps=None if every else steps, sites=sites, stats=stats, tokens=tokens
    )
    return Recording(
        model, optimizer, partial(_with_first_step, known), asked, start=start, total=total
    )


def _with_first_step(known: Loop, recording: Recording) -> Loop:
    """``known`` with what the first step shows."""
    passes = recording.passes.passes
    return replace(
        known,
        precision=recording.precision,
        batch_size=max(1, passes[0].sequences),
        accumulation=len(passes),
        schedule="scheduled" if "initial_lr" in recording.group else "constant",
    )


def is_seeded() -> bool:
    """Whether somebody has set the seed of torch."""
    return torch.initial_seed() <= LARGEST_SEED


def _check_varies(varies: dict[str, Any]) -> None:
    """Raises :class:`StudyError` for a name that the tables have already, and for odd values."""
    taken = {*FIRST, *inspect.signature(CellConfig).parameters}
    for name, value in varies.items():
        if name in taken or name.startswith("_"):
            raise StudyError(f"{name}={short(value)}: the tables have a column {name} already")
        if not isinstance(value, bool | int | float | str | None):
            raise StudyError(f"{name}={short(value)}: give a number, a string or a bool")
