"""Whether a run is stuck: it goes on, but its measurements do not change any more.

Too large a learning rate can cause this while all values stay finite. The adapters' outputs
overflow in a norm or saturate a softmax, and the gradient is exactly zero from then on.
"""

import math
from collections.abc import Mapping

from study.vocabulary.thresholds import STUCK_GRADIENT, STUCK_LOSS, STUCK_STEPS


class StuckCheck:
    """Reads a run's rows of ``metrics`` one by one, and keeps a few numbers.

    A run is stuck from ``step`` on if, from there to its last row, every gradient norm is
    negligible against the first one (:data:`STUCK_GRADIENT`), at :data:`STUCK_STEPS` steps at
    least, and all held-out losses are the same to rounding (:data:`STUCK_LOSS`).
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._begin_again()

    def _begin_again(self) -> None:
        self._since: int | None = None
        self._negligible = 0
        self._heldout = math.nan

    @property
    def step(self) -> int | None:
        """The first step of the stuck end of the run; None if the run is not stuck so far."""
        return self._since if self._negligible >= STUCK_STEPS else None

    def add(self, row: Mapping[str, float]) -> None:
        """Read the next row. Columns may be absent or NaN: not every step measures everything."""
        norm, loss = row.get("grad_norm", math.nan), row.get("loss", math.nan)
        if self._first is None and norm > 0:
            self._first = norm, loss
        first_norm, first_loss = self._first or (1.0, loss)
        if loss > 0 and norm * first_loss <= STUCK_GRADIENT * loss * first_norm:
            self._since = int(row["step"]) if self._since is None else self._since
            self._negligible += 1
        elif not math.isnan(norm):
            self._begin_again()
        heldout = row.get("eval_loss", math.nan)
        if self._since is None or math.isnan(heldout):
            return
        if math.isnan(self._heldout):
            self._heldout = heldout
        elif abs(heldout - self._heldout) > STUCK_LOSS * abs(self._heldout):
            self._begin_again()
