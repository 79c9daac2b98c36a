"""The result of one step: a row of ``metrics`` for each cell, and other measurements."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import pandas as pd
import torch
from torch import Tensor

from study.adapters import LoraPair
from study.probes import Sent
from study.probes.measurements import HostCopy
from study.store.checkpoints import Checkpoint
from study.training.checkpoint import capture
from study.training.fold import Fold


class Numbers:
    """The numbers of one step of a fold. They come to the host in one copy, which does not block.

    ``columns``: of the ``metrics`` table, by name; each has a number per cell, a ``[K]`` tensor on
    the device or a list. ``alive_K``: whether a cell's losses and gradient norms have been finite.
    """

    def __init__(self, columns: Mapping[str, Sequence[float] | Tensor], alive_K: Tensor) -> None:
        self._columns = columns
        on_device = [x for x in columns.values() if isinstance(x, Tensor)]
        self._copy = HostCopy(torch.stack([x.double() for x in (*on_device, alive_K)]))
        self.step = int(columns["step"][0])

    @property
    def arrived(self) -> bool:
        return self._copy.arrived

    @cached_property
    def rows_K(self) -> list[dict[str, float]]:
        """Each cell's row of the ``metrics`` table, less ``cell_id``. Waits for the numbers."""
        left = iter(self._left)
        columns = [next(left) if isinstance(x, Tensor) else x for x in self._columns.values()]
        return [dict(zip(self._columns, row, strict=True)) for row in zip(*columns, strict=True)]

    @cached_property
    def alive_K(self) -> list[bool]:
        return [bool(alive) for alive in self._left[-1]]

    @cached_property
    def _left(self) -> list[list[float]]:
        return self._copy.numpy().tolist()


@dataclass(frozen=True)
class CellStep:
    """One step of the ``cell``-th cell of a fold. ``numbers`` and ``sent`` (of probes) are on their
    way to the host. Only the last step has an ``adapter`` and ``tables``. ``snapshot``: gives the
    cell's state after this step, in the memory that training changes: copy or write it before the
    loop continues."""

    cell: int
    numbers: Numbers = field(repr=False)
    sent: Sequence[Sent] = field(repr=False)
    adapter: dict[str, LoraPair] | None = field(repr=False)
    tables: Mapping[str, pd.DataFrame] = field(repr=False)
    snapshot: Callable[[], Checkpoint] = field(repr=False, compare=False)

    @property
    def step(self) -> int:
        return self.numbers.step

    @property
    def metrics(self) -> dict[str, float]:
        return self.numbers.rows_K[self.cell]

    @property
    def diverged(self) -> bool:
        """Whether the loss or the gradient norm is not finite. Waits for the numbers."""
        return not self.numbers.alive_K[self.cell]

    @property
    def arrived(self) -> bool:
        return self.numbers.arrived and all(sent.arrived for sent in self.sent)

    @property
    def probes(self) -> pd.DataFrame | None:
        """The rows of the ``probes`` table; waits for them. None if nothing was measured."""
        if not self.sent:
            return None
        return pd.concat([sent.frame(self.cell) for sent in self.sent], ignore_index=True)


def results(
    fold: Fold,
    step: int,
    metrics: Mapping[str, Sequence[float] | Tensor],
    sent: Sequence[Sent],
    tables_K: Sequence[Mapping[str, pd.DataFrame]],
) -> list[CellStep]:
    """The step's results, one per cell. ``metrics``: by name and cell. ``tokens`` counts real
    tokens, ``seconds`` until the host launched the step."""
    columns: dict[str, Sequence[float] | Tensor] = {
        "step": [step] * len(fold.cells),
        "tokens": fold.tokens_K,
        "seconds": fold.seconds_K,
        **metrics,
    }
    numbers = Numbers(columns, fold.alive_K)
    return [
        CellStep(
            cell=k,
            numbers=numbers,
            sent=sent,
            adapter=_trained_adapter(fold, k, step),
            tables=tables_K[k],
            snapshot=partial(capture, weakref.ref(fold), k, step),
        )
        for k in range(len(fold.cells))
    ]


def _trained_adapter(fold: Fold, cell: int, step: int) -> dict[str, LoraPair] | None:
    train = fold.cells[cell].train
    if step < train.steps or not train.save_adapter:
        return None
    found = {}
    for bank in fold.banks:
        pairs = dict(pair for stack in bank.stacks(whole=True) for pair in stack.pairs())
        A_RD, B_OR, gamma = pairs[cell]
        found[bank.layer] = LoraPair(A_RD.cpu().clone(), B_OR.cpu().clone(), gamma)
    return found
