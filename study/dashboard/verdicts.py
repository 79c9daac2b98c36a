"""The primary exponents of a study so far: the fits, predictions and tests of ``study analyze``.

Only the rows that these need are read. Over millions of rows that takes a second, so the page can
be live.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import fit_exponents, summary, with_predictions, with_verdicts
from study.dashboard.following import FollowedCell, FollowedStudy
from study.errors import StudyError
from study.store import load_cell_table
from study.vocabulary.quantities import GRADIENTS, MODEL_WIDE, PRIMARY, STATS
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

FIXED_STEPS = sorted({step for q in PRIMARY for step in q.primary_at if isinstance(step, int)})
"""The steps of the primary verdicts, except the last one measured."""


class Verdicts:
    """The verdict table of a study, fitted again when a cell ends or an early step is measured."""

    def __init__(self) -> None:
        self._fitted_for: Any = None
        self._found: tuple[pd.DataFrame, str] = pd.DataFrame(), ""
        self._rows: dict[str, tuple[Any, pd.DataFrame]] = {}

    def of(self, study: FollowedStudy) -> tuple[pd.DataFrame, str]:
        """The primary rows of :func:`study.analysis.summary`, and a note.

        The note says why there are no rows; it is empty if there are.
        """
        cells = list(study.followed.values())
        last = sorted(
            {int(cell.probes.steps[-1]) for cell in cells if cell.ended and len(cell.probes.steps)}
        )
        steps = [*FIXED_STEPS, *last]
        state = [
            (cell.row["cell_id"], cell.row["status"], cell.revision, _counted(cell, steps))
            for cell in cells
        ]
        if state != self._fitted_for:
            self._found, self._fitted_for = self._fit(study, cells, steps), state
        return self._found

    def _fit(
        self, study: FollowedStudy, cells: Sequence[FollowedCell], steps: list[int]
    ) -> tuple[pd.DataFrame, str]:
        if not cells:
            return pd.DataFrame(), "No exponents: there is no cell that can be read."
        table = study.cells()
        if table.loc[np.isfinite(table["rank"]), "rank"].nunique() < 2:
            return pd.DataFrame(), "No exponents yet: two ranks are needed."
        parts = [self._needed(cell, steps) for cell in cells]
        parts = [part for part in parts if len(part)]
        if not parts:
            return pd.DataFrame(), "No exponents yet: nothing has been measured."
        probes = pd.concat(parts, ignore_index=True)
        for name in ("cell_id", "layer", "kind", "site", "batch"):
            probes[name] = probes[name].astype("category")
        metrics = pd.concat(
            [cell.metrics.assign(cell_id=cell.row["cell_id"]) for cell in cells], ignore_index=True
        )
        asked = probes["site"].isin([q.site for q in PRIMARY]) & probes["step"].isin(steps)
        stats = list(dict.fromkeys(q.stat for q in PRIMARY))
        try:
            exponents = fit_exponents(table, probes[asked], stats=stats)
            if exponents.empty:
                return (
                    pd.DataFrame(),
                    "No exponents yet: no quantity has been measured at two ranks.",
                )
            rows = summary(with_verdicts(with_predictions(exponents, table, metrics, probes)))
        except StudyError as error:
            return pd.DataFrame(), f"No exponents: {error}"
        return rows[rows["primary"].astype(bool)], ""

    def _needed(self, cell: FollowedCell, steps: list[int]) -> pd.DataFrame:
        """The probe rows of one cell that fits and predictions need; kept once it has ended."""
        key = (cell.files, tuple(steps))
        kept = self._rows.get(cell.row["cell_id"])
        if kept is not None and kept[0] == key:
            return kept[1]
        columns = ("step", "layer", "block", "kind", "site", "batch", "d_in", "d_out", *STATS)
        frame = load_cell_table(cell.folder, "probes", columns).to_pandas()
        # Predictions need the gradients at every step, to compare them with Adam's eps.
        here = (
            frame["site"].isin(GRADIENTS)
            | (frame["layer"] == MODEL_WIDE)
            | frame["step"].isin([*steps, *range(LAST_PREDICTED_STEP + 1)])
        )
        rows = (
            frame[here]
            .assign(cell_id=cell.row["cell_id"])
            .astype(dict.fromkeys(("layer", "kind", "site", "batch"), object))
        )
        if cell.ended:
            self._rows[cell.row["cell_id"]] = key, rows
        return rows


def _counted(cell: FollowedCell, steps: list[int]) -> int:
    return sum(step in steps for step in cell.probes.steps.tolist())
