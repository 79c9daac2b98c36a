"""The passes at step 0 that a cell of a pack skips, because an earlier cell has run them.

The estimate of a cell and the time left of a sweep read them here. Both assume that cells train one
after another, and that shared tensors have room (:mod:`study.training.shared_start`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from study.config import CellConfig, eval_steps, probe_steps
from study.training.shared_start import may_share
from study.vocabulary.quantities import HELDOUT, TRAIN


def known_batches(cells: Sequence[CellConfig]) -> list[frozenset[str]]:
    """For each cell of a pack, in order: the batches whose pass at step 0 an earlier cell has run.

    See :mod:`study.training.shared_start`. Only the training batch depends on the seed. Cells whose
    products have other forms run a pass of their own, which is not counted here.
    """
    found: list[frozenset[str]] = []
    seen: set[tuple[str, int | None]] = set()
    for config in cells:
        of_cell: set[tuple[str, int | None]] = {(TRAIN, config.data.seed)}
        of_cell |= {(batch, None) for batch in {*config.probes.batch, HELDOUT} - {TRAIN}}
        shares = may_share(config)
        found.append(frozenset(batch for batch, _ in of_cell & seen) if shares else frozenset())
        if shares:
            seen |= of_cell
    return found


@dataclass(frozen=True)
class Saved:
    """Passes through the base, forward and backward: that of step 0 itself (0 or 1), and those of
    its probe on other batches; and how often the held-out loss is evaluated (0 or 1).
    """

    of_step: int
    of_probe: int
    evaluations: int


def saved(config: CellConfig, known: frozenset[str]) -> Saved:
    """The passes that a cell skips at step 0 if those of the batches ``known`` are known."""
    probed = config.probes.batch if 0 in probe_steps(config) else []
    return Saved(
        of_step=int(TRAIN in known),
        of_probe=len((known & {*probed}) - {TRAIN}),
        evaluations=int(HELDOUT in known and 0 in eval_steps(config)),
    )
