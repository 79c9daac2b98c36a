"""What a study shows so far: the fits, predictions, tests and comparisons of ``study analyze``.

Only the rows that these need are read. Over millions of rows that takes a second, so the page can
be live.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from study.analysis import (
    fit_exponents,
    headline,
    stable_exponents,
    with_predictions,
    with_verdicts,
)
from study.analysis.rank_stabilized import BATCHES_OF
from study.dashboard.following import FollowedCell, FollowedStudy
from study.dashboard.losses import held_out
from study.dashboard.probes import Layout
from study.errors import StudyError
from study.vocabulary.quantities import (
    GRADIENTS,
    MODEL_WIDE,
    POOLINGS,
    PRIMARY,
    PRODUCTS,
    QUANTITIES,
    STATS,
    TRAIN,
)
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

FIXED_STEPS = sorted({step for q in PRIMARY for step in q.primary_at if isinstance(step, int)})
"""The steps of the primary verdicts, except the last one measured."""
NEEDED = {*(q.site for q in QUANTITIES), *GRADIENTS, *PRODUCTS}
"""The sites whose exponents are fitted, and those on which their predictions depend."""
CONDITION_BATCHES = {batch for batches in BATCHES_OF.values() for batch in batches} - {TRAIN}
"""The batches, other than the training batch, on which the paper's condition is read."""
COLUMNS = ("step", "layer", "block", "kind", "site", "batch", "d_in", "d_out", *STATS)


class Found(NamedTuple):
    """What :class:`Verdicts` finds.

    - ``rows``: those of :func:`study.analysis.headline`. ``note``: why there are none;
    - ``stable``: the table of :func:`study.analysis.stable_exponents`;
    - ``losses``: see :func:`~study.dashboard.losses.held_out`.
    """

    rows: pd.DataFrame
    note: str
    stable: pd.DataFrame
    losses: dict[str, Any]


class Verdicts:
    """Verdicts, p* and losses of a study, found again when a cell ends or an early step is
    measured."""

    def __init__(self) -> None:
        self._fitted_for: Any = None
        self._found: Found
        self._rows: dict[str, tuple[Any, pa.Table]] = {}

    def of(self, study: FollowedStudy) -> Found:
        """What the study shows at its last refresh."""
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
            self._found, self._fitted_for = self._find(study, cells, steps), state
        return self._found

    def _find(self, study: FollowedStudy, cells: Sequence[FollowedCell], steps: list[int]) -> Found:
        none = pd.DataFrame()
        if not cells:
            note = "No exponents: there is no cell that can be read."
            return Found(none, note, none, {"runs": [], "compared": [], "groups": {}})
        table, probes = study.cells(), self._probes(cells, steps)
        metrics = pa.concat_tables([cell.metrics for cell in cells]).to_pandas()
        metrics = metrics.assign(cell_id=_ids(cells, [len(cell.metrics) for cell in cells]))
        losses = held_out(table, metrics, probes)
        if table.loc[np.isfinite(table["rank"]), "rank"].nunique() < 2:
            return Found(none, "No exponents yet: two ranks are needed.", none, losses)
        if probes.empty:
            return Found(none, "No exponents yet: nothing has been measured.", none, losses)
        try:
            exponents = _exponents(table, probes, steps)
            if exponents.empty:
                note = "No exponents yet: no quantity has been measured at two ranks."
                return Found(none, note, none, losses)
            predicted = with_predictions(exponents, table, metrics, probes)
            rows = headline(with_verdicts(predicted))
            # A quantity on the batch of the paper's condition comes before itself on the training
            # batch. It gets one verdict.
            rows = rows.drop_duplicates(["optimizer", "rule", "curve", "quantity", "over", "step"])
            stable = stable_exponents(predicted)
        except StudyError as error:
            return Found(none, f"No exponents: {error}", none, losses)
        return Found(rows, "", stable, losses)

    def _probes(self, cells: Sequence[FollowedCell], steps: list[int]) -> pd.DataFrame:
        """The probe rows of all cells that fits and predictions need."""
        masks: dict[Layout, pa.Array] = {}
        parts = [self._needed(cell, steps, masks) for cell in cells]
        rows = list(map(len, parts))
        whole = pa.concat_tables(parts).unify_dictionaries()
        del parts
        probes = whole.to_pandas(split_blocks=True, self_destruct=True)
        del whole
        for name in ("layer", "kind", "site", "batch"):
            column = probes[name].cat.remove_unused_categories()
            probes[name] = column.cat.reorder_categories(sorted(column.cat.categories))
        return probes.assign(cell_id=_ids(cells, rows))

    def _needed(
        self, cell: FollowedCell, steps: list[int], masks: dict[Layout, pa.Array]
    ) -> pa.Table:
        """Those rows of one cell; kept once it has ended. ``masks``: which rows, by layout."""
        key = (cell.files, tuple(steps))
        kept = self._rows.get(cell.row["cell_id"])
        if kept is not None and kept[0] == key:
            return kept[1]
        table, layout = cell.probes.rows(COLUMNS), cell.probes.layout
        if len(table):
            if layout not in masks:
                masks[layout] = pa.array(_are_needed(table, steps))
            table = table.filter(masks[layout])
        if cell.ended and not cell.probes.in_memory:
            self._rows[cell.row["cell_id"]] = key, table
        return table


def _exponents(cells: pd.DataFrame, probes: pd.DataFrame, steps: list[int]) -> pd.DataFrame:
    """The exponents of all quantities, and of what a word on the condition is corrected for.

    A primary verdict is corrected for the other primary ones. One on held-out inputs is corrected
    for all sites and statistics on them at its step, so those are fitted too.
    """
    sites = [quantity.site for quantity in QUANTITIES]
    stats = list(dict.fromkeys(quantity.stat for quantity in QUANTITIES))
    asked = probes["site"].isin(sites) & probes["step"].isin(steps)
    exponents = fit_exponents(cells, probes[asked], stats=stats)
    last = [step for step in steps if step not in FIXED_STEPS]
    beside = probes["batch"].isin(CONDITION_BATCHES) & probes["step"].isin(last)
    if not beside.any():
        return exponents
    family = fit_exponents(cells, probes[beside])
    fitted = family["site"].isin(sites) & family["stat"].isin(stats)
    pooled = family["layer"].isin([*POOLINGS, MODEL_WIDE])
    return pd.concat([exponents, family[pooled & ~fitted]], ignore_index=True)


def _are_needed(table: pa.Table, steps: list[int]) -> npt.NDArray[np.bool_]:
    frame = table.select(["step", "layer", "site", "batch"]).to_pandas()
    # Predictions need the gradients at every step, to compare them with Adam's eps.
    at_step = (
        frame["site"].isin(GRADIENTS)
        | (frame["layer"] == MODEL_WIDE)
        | frame["step"].isin([*steps, *range(LAST_PREDICTED_STEP + 1)])
    )
    needed = frame["site"].isin(NEEDED) | frame["batch"].isin(CONDITION_BATCHES)
    return (at_step & needed).to_numpy()


def _ids(cells: Sequence[FollowedCell], rows: Sequence[int]) -> "pd.Categorical[str]":
    """The id of the cell of each row. ``rows``: how many each cell has."""
    names = [str(cell.row["cell_id"]) for cell in cells]
    ordered = sorted(name for name, number in zip(names, rows, strict=True) if number)
    place = {name: code for code, name in enumerate(ordered)}
    codes = np.array([place.get(name, -1) for name in names], np.int32)
    return pd.Categorical.from_codes(np.repeat(codes, rows), pd.Index(ordered))


def _counted(cell: FollowedCell, steps: list[int]) -> int:
    return sum(step in steps for step in cell.probes.steps.tolist())
