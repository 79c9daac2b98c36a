"""How long cells and their steps take beside each other, before any is trained.

The time left of a sweep is scaled by these numbers (:mod:`study.sweeps.pace`), so their unit does
not matter.
"""

import math
from typing import Any

import numpy as np

from study.adapters import Contraction
from study.adapters.contraction import FLOAT
from study.config import CellConfig, eval_steps, probe_steps
from study.models import ModelCard
from study.sweeps.estimate import estimate
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

CALLS = 2e7
"""FLOPs that a CPU computes in the time that the small operations of one layer take in a step:
about 0.2 ms. A tiny model does little else."""
FORWARD = 1 / 3
"""The share of a training step that a forward pass takes."""
STATISTICS = 0.6
"""The statistics of one probed batch, in plain steps. On SmolLM2 and a CPU they take 0.4 of a step
at rank 4 and 0.8 at rank 256."""
MOST_POINTS = 64
"""Points of :func:`step_shares`."""


def relative_cost(config: CellConfig, card: ModelCard) -> float:
    """The time of a cell, in FLOPs. Reads no data: every token counts as a target."""
    tokens = config.train.batch_size * config.train.accumulation * config.data.sequence_length
    contraction = Contraction(config.adapter.contraction, tokens)
    whole = estimate(config, card, tokens, tokens, contraction)
    # An update reads the gradient and reads and writes the weights and what the optimizer keeps.
    floats = (3 + 2 * OPTIMIZERS[config.optimizer.name].states) * whole.weights
    return whole.flops + config.train.steps * (FLOAT * floats + CALLS * len(card.linears))


def step_shares(config: CellConfig) -> list[list[float]]:
    """How much of a cell's time is over after a step: pairs (step, share), for interpolation.

    A probed or evaluated step takes several times as long as a plain one, so the number of steps
    does not say how far a cell is.
    """
    last = config.train.steps
    over = np.cumsum(_weights(config))
    measured = {0, *probe_steps(config), *eval_steps(config)}
    bends = {last, *(s for step in measured for s in (step - 1, step) if s >= 0)}
    points = sorted(bends)
    points = [*points[:: math.ceil(len(points) / MOST_POINTS)], last]
    return [[step, float(over[step] / max(over[last], 1e-9))] for step in dict.fromkeys(points)]


def _weights(config: CellConfig) -> "np.ndarray[Any, Any]":
    """The time of each step, in plain steps, ``[steps + 1]``."""
    last, probed = config.train.steps, probe_steps(config)
    weight = np.ones(last + 1)
    weight[last] = last in probed  # the last step only measures
    for step in probed:
        # The step's own batch is in the plain step; the others are passed through the model too.
        weight[step] += len(config.probes.batch) - 1 + STATISTICS * len(config.probes.batch)
        if step < last and step <= LAST_PREDICTED_STEP:  # the loss after the update
            weight[step] += FORWARD
    heldout = FORWARD * config.data.heldout / config.train.batch_size
    for step in eval_steps(config):
        weight[step] += heldout
    return weight
