"""The result of one step: a row of ``metrics`` for each cell, and what else was measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from study.adapters import LoraPair
from study.probes import Sent
from study.training.checkpoint import Snapshot, capturing
from study.training.fold import Fold


@dataclass(frozen=True)
class CellStep:
    """One step of the ``cell``-th cell of a fold.

    - ``metrics``: a row of the ``metrics`` table, less ``cell_id``;
    - ``sent``: the probes' numbers, on their way to the host;
    - ``diverged``: the loss or the gradient norm is not finite at this step. The cell has no later
      step;
    - ``adapter``: the trained factors by layer, copied to the CPU. Only at the last step of a cell
      with ``train.save_adapter``;
    - ``truncations``: a table of held-out losses at lower ranks. Only at the last step, if asked.
    """

    cell: int
    metrics: dict[str, float]
    sent: Sequence[Sent] = field(repr=False)
    diverged: bool
    adapter: dict[str, LoraPair] | None = field(default=None, repr=False)
    truncations: pd.DataFrame | None = field(default=None, repr=False)
    capture: Callable[[], Snapshot] | None = field(default=None, repr=False, compare=False)

    def snapshot(self) -> Snapshot:
        """The cell's state after this step, in the memory that training changes.

        It is valid until the loop goes on: copy or write it before. Raises ``RuntimeError`` later,
        and for a cell that has diverged, which has no later step.
        """
        if self.capture is None:
            raise RuntimeError("this step has no state to go on from")
        return self.capture()

    @property
    def arrived(self) -> bool:
        """Whether the probes' numbers have left the device, which they do while it trains on."""
        return all(sent.arrived for sent in self.sent)

    @property
    def probes(self) -> pd.DataFrame | None:
        """The rows of the ``probes`` table; waits for them. None if nothing was measured."""
        if not self.sent:
            return None
        return pd.concat([sent.frame(self.cell) for sent in self.sent], ignore_index=True)


def results(
    fold: Fold,
    step: int,
    metrics: dict[str, list[float]],
    sent: Sequence[Sent],
    truncations: Sequence[pd.DataFrame] | None,
) -> list[CellStep]:
    """The step's results, one per cell.

    ``tokens`` counts the real tokens seen so far; ``seconds`` is the cell's time so far.
    """
    seconds_K = fold.seconds_K
    return [
        CellStep(
            cell=k,
            metrics={"step": step, "tokens": fold.tokens_K[k], "seconds": seconds_K[k]}
            | {name: values[k] for name, values in metrics.items()},
            sent=sent,
            diverged=learner.diverged,
            adapter=_trained_adapter(fold, k, step),
            truncations=None if truncations is None else truncations[k],
            capture=None if learner.diverged else capturing(fold, k, step),
        )
        for k, learner in enumerate(fold.learners)
    ]


def _trained_adapter(fold: Fold, cell: int, step: int) -> dict[str, LoraPair] | None:
    train = fold.cells[cell].train
    if step < train.steps or not train.save_adapter:
        return None
    pairs = {bank.layer: bank.pairs[cell] for bank in fold.banks}
    return {
        layer: LoraPair(A.detach().cpu().clone(), B.detach().cpu().clone(), gamma)
        for layer, (A, B, gamma) in pairs.items()
    }
