"""The state of one cell between two steps: captured from a fold, and restored into another.

A cell that resumes in a fold of the same cells follows the same path, bit for bit on a CPU. In
another fold the path agrees within rounding. A step's batch and measurements depend on its number
only, so the state holds only what steps change:

- the factors of every layer, the optimizer's state and the schedule;
- the dropout streams, and the weight gradients that alignments need at the first few steps;
- the counts of tokens and seconds.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from study.adapters import LoraBank
from study.errors import StudyError, one_line
from study.store.checkpoints import WEIGHTS, Checkpoint
from study.training.fold import Fold
from study.training.sharding import DIVIDED, Order

OPTIMIZER, DROPOUT, ALIGNMENT = "optimizer/", "dropout/", "alignment/"
"""The beginnings of the names of tensors that are not weights."""


def capture(of_fold: "weakref.ref[Fold]", cell: int, step: int) -> Checkpoint:
    """One cell's state after ``step``. On a CPU it shares the memory that training changes. Other
    processes take part, and process 0 alone gets all of it."""
    fold = of_fold()
    if fold is None or fold.step != step:
        raise RuntimeError(f"the state after step {step} is gone: the loop has gone on")
    world = fold.world
    if world.number == 0:
        world.agreed(Order.CAPTURE)
    tensors = {
        name: world.whole(factor.detach(), dim)
        for bank in fold.banks
        for name, factor, dim in _factors(bank, cell)
    }
    optimizer, state = fold.learners[cell].state(world.whole)
    tensors |= {OPTIMIZER + name: tensor for name, tensor in optimizer.items()}
    for bank in fold.banks:
        if (streams := bank.dropout_state()) is not None:
            tensors[DROPOUT + bank.layer] = streams[cell]
    if fold.alignment is not None:
        summed = fold.alignment.gradients(cell)
        tensors |= {ALIGNMENT + layer: G_OD for layer, G_OD in summed.items()}
    state |= {
        "tokens": fold.tokens_K[cell],
        "seconds": fold.seconds_K[cell],
        "device": fold.base.device.type,
    }
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    return Checkpoint(fold.step + 1, arrays, state)


def start(fold: Fold, resume: Sequence[Checkpoint]) -> int:
    """Give every cell of a new fold its state. Returns the first step to run."""
    if not resume:
        return 0
    steps = [each.step for each in resume]
    if len(steps) != len(fold.cells) or len(set(steps)) != 1:
        raise ValueError(f"{len(fold.cells)} cells can't go on from the steps {steps}")
    try:
        _restore(fold, resume)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        why = f"a checkpoint of step {resume[0].step} does not fit its cell ({one_line(error)})"
        raise StudyError(f"{why}: delete the cell's folder checkpoints") from error
    return steps[0]


def _restore(fold: Fold, resume: Sequence[Checkpoint]) -> None:
    tensors_K = [
        {name: torch.from_numpy(array) for name, array in each.tensors.items()} for each in resume
    ]
    for cell, (each, tensors) in enumerate(zip(resume, tensors_K, strict=True)):
        for bank in fold.banks:
            for name, factor, dim in _factors(bank, cell):
                stored = fold.world.part(tensors[name], dim)
                if stored.shape != factor.shape:
                    raise ValueError(f"{name} is {list(stored.shape)}, not {list(factor.shape)}")
                factor.data.copy_(stored)
        fold.learners[cell].restore(_part(tensors, OPTIMIZER), each.state, fold.world.part)
        fold.tokens_K[cell] = int(each.state["tokens"])
        fold.earlier_K[cell] = float(each.state["seconds"])
    # The shared state of a fold: dropout streams and accumulated gradients.
    for bank in fold.banks:
        streams = [tensors.get(DROPOUT + bank.layer) for tensors in tensors_K]
        if any(stream is not None for stream in streams):
            bank.set_dropout(streams)
    if resume[0].step > fold.aligned_until:
        fold.alignment = None  # as it is after the step that measures it last
    if fold.alignment is not None:
        fold.alignment.set_gradients([_part(tensors, ALIGNMENT) for tensors in tensors_K])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): tensors[n] for n in tensors if n.startswith(prefix)}


def _factors(bank: LoraBank, cell: int) -> Iterator[tuple[str, Tensor, int]]:
    """The name of each factor in a checkpoint, the factor, and the dimension it is divided in."""
    for side, factor, dim in zip("AB", bank.pairs[cell][:2], DIVIDED, strict=True):
        yield f"{WEIGHTS}{bank.layer}/{side}", factor, dim
