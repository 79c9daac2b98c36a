"""What a process of torchrun does that is not process 0: train its part of every cell.

Process 0 sends the cells of each pack, then each cell and the step at which it begins, and after
each step an :class:`~study.adapters.processes.Order`. None ends what it began. Nothing is written
here.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence

import torch

from study.adapters.processes import Order, Processes
from study.sweeps import processes, signals
from study.sweeps.cells import Cell
from study.sweeps.checkpointing import newest
from study.sweeps.devices import own_device
from study.sweeps.prepare import prepare
from study.sweeps.run import loaded_base
from study.training.devices import keep_freed_memory, release_memory
from study.training.loop import CellStep, train


def follow() -> None:
    """Train with process 0 until it ends. Ends the process with code 1 after a failure."""
    for signum in signals.STOPPING:  # process 0 decides when all stop
        signal.signal(signum, signal.SIG_IGN)
    try:
        orders = processes.world(torch.device("cpu"))
        while (cells := orders.agreed()) is not None:
            _train_pack(cells)
    except BaseException as error:
        if line := processes.report_failure(error):
            signals.say(f"study: {line}")
        os._exit(1)  # a group that has lost a process may wait for it in a destructor


def _train_pack(cells: Sequence[Cell]) -> None:
    number = processes.local_number()
    with own_device(cells[0].config.device, processes.stopped, number) as device:
        if device is None:
            processes.world(torch.device("cpu")).agreed()  # that there is nothing to train
        else:
            processes.ready()
            _train_on(device, cells)


def _train_on(device: torch.device, cells: Sequence[Cell]) -> None:
    keep_freed_memory()
    world = processes.world(device)
    pack = prepare(cells, device=device)
    base = loaded_base(pack.config, processes.device_of_base(device), pack.cells[0].cell.card)
    prepared = {each.cell.id: each for each in pack.cells}
    while (order := world.agreed()) is not None:
        cell_id, step = order
        each = prepared[cell_id]
        states = [newest(each.cell, device, _silent)] if step else []
        found = [state for state in states if state]
        if [state.step for state in found] != [step] * bool(step):
            raise RuntimeError(f"cell {cell_id} has no checkpoint of step {step} here")
        with contextlib.closing(train(base, pack.corpus, [each.run], found, world=world)) as steps:
            _follow_steps(steps, world)
        release_memory(device)


def _silent(_: str) -> None:
    """Process 0 prints the lines about a checkpoint."""


def _follow_steps(steps: Iterable[Sequence[CellStep | None]], world: Processes) -> None:
    for results in steps:
        while (order := world.agreed()) is Order.CAPTURE:
            for result in filter(None, results):
                result.snapshot()
        if order is Order.STOP:
            return
