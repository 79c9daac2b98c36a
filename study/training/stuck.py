"""Whether a run is stuck: it goes on, but nothing that it measures changes any more.

Too large a learning rate can do this without a value that is not finite. The adapters' outputs
overflow in a norm or saturate a softmax, and the gradient is exactly zero from then on.
"""

import math
from collections.abc import Mapping

from study.vocabulary.thresholds import STUCK_GRADIENT, STUCK_LOSS, STUCK_STEPS


class StuckCheck:
    """Reads a run's rows of ``metrics`` one by one. Keeps a few numbers, not the rows.

    A run is stuck from ``step`` on if, from there to its last row,

    - every gradient norm is negligible against the first one (:data:`STUCK_GRADIENT`), at
      :data:`STUCK_STEPS` steps at least;
    - all held-out losses are the same to rounding (:data:`STUCK_LOSS`).

    A run with a tiny learning rate, or in a warm-up from 0, has gradients and is not stuck. Neither
    is a run whose loss is small: its gradient is small in the same proportion, or the loss is 0.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._since: int | None = None
        self._negligible = 0
        self._heldout: float | None = None

    @property
    def step(self) -> int | None:
        """The first step of the stuck end of the run; None if the run is not stuck so far."""
        return self._since if self._negligible >= STUCK_STEPS else None

    def add(self, row: Mapping[str, float]) -> None:
        """Read the next row. Columns may be absent or NaN: not every step measures everything."""
        norm, loss = row.get("grad_norm", math.nan), row.get("loss", math.nan)
        if not math.isnan(norm):
            if self._is_negligible(norm, loss):
                if self._since is None:
                    self._since = int(row["step"])
                self._negligible += 1
            else:
                self._forget()
        if self._since is not None:
            self._compare(row.get("eval_loss", math.nan))

    def _is_negligible(self, norm: float, loss: float) -> bool:
        if self._first is None and norm > 0:
            self._first = norm, loss
        if not loss > 0:
            return False
        first_norm, first_loss = self._first or (1.0, loss)
        return norm * first_loss <= STUCK_GRADIENT * loss * first_norm

    def _compare(self, heldout: float) -> None:
        """Start again if the held-out loss has changed since the gradients are negligible."""
        if math.isnan(heldout):
            return
        if self._heldout is None:
            self._heldout = heldout
        elif abs(heldout - self._heldout) > STUCK_LOSS * abs(self._heldout):
            self._forget()

    def _forget(self) -> None:
        self._since, self._negligible, self._heldout = None, 0, None
