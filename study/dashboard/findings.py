"""The final losses of a study, and the comparison of several, as objects for the page.

All numbers and words come from :mod:`study.analysis`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import compared_losses
from study.analysis.compare import compare, conclusion, table_texts
from study.analysis.grouping import RULE, groups
from study.analysis.losses import final_losses
from study.dashboard.studies import Study
from study.errors import StudyError
from study.figures import style
from study.figures.exponents import differences
from study.figures.selection import Rule
from study.report.page import png_of, source_of
from study.vocabulary.quantities import METRICS
from study.vocabulary.statuses import note

AXIS = f"final {METRICS['eval_loss'].label} ({METRICS['eval_loss'].unit})"


def held_out(study: Study) -> dict[str, Any]:
    """The final held-out losses of the cells that have ended.

    - ``runs``: a row per cell, for the losses against the learning rate; ``note``: how it ended;
    - ``compared``: the rows of :func:`study.analysis.compared_losses`;
    - ``best``: the best rate of each rank, as the report's table has it;
    - ``group`` of a row is a number: ranks, rules and learning rates compare within a group;
    - ``groups``: the group by cell id.

    A loss is null if the run diverged.
    """
    tables = study.tables.cells, study.tables.metrics
    if tables[0].empty:
        return {"runs": [], "compared": [], "best": [], "groups": {}}
    runs, compared = (
        table(*tables).to_dict("records") for table in (final_losses, compared_losses)
    )
    notes = {str(cell["cell_id"]): note(cell) for cell in tables[0].to_dict("records")}
    return {
        "runs": [_loss(row) | {"note": notes[row["cell_id"]]} for row in runs],
        "compared": [
            _loss(row) | {"how": row["how"], "edge": row["edge"] != ""} for row in compared
        ],
        "best": list(_best(study.tables.rates)),
        "groups": {row["cell_id"]: int(row["setting"]) for row in runs},
    }


def _loss(row: Mapping[Any, Any]) -> dict[str, Any]:
    loss = float(row["loss"])
    return {
        "rule": style.gid(Rule.of(*(row[name] for name in RULE))),
        "group": int(row["setting"]),
        "rank": int(row["rank"]),
        "seed": int(row["seed"]),
        "lr": float(row["lr"]),
        "loss": loss if math.isfinite(loss) else None,
    }


def _best(rates: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The geometric mean over seeds of each rule and rank, and whether some seed is at an edge."""
    for own in groups(rates, ["setting", *RULE, "alpha", "rank"]):
        row = _loss({**own.iloc[0], "lr": np.exp(np.log(own["best_lr"]).mean()), "loss": np.nan})
        yield row | {"edge": bool((own["edge"] != "").any())}


def comparison(studies: Sequence[Study]) -> dict[str, Any]:
    """The first study compared with each other one, as by ``study compare``; empty for one."""
    if len(studies) < 2:
        return {}
    nothing: dict[str, Any] = {"pictures": [], "tables": []}
    if without := [one.name for one in studies if one.tables.metrics.empty]:
        return {"sentences": [f"{without[0]} has no numbers yet."], **nothing}
    try:
        found = compare({one.name: one.tables for one in studies})
    except StudyError as error:
        return {"sentences": [str(error)], **nothing}
    parts = {str(name): rows for name, rows in found.rows.groupby("study", sort=False)}
    return {
        "sentences": [
            f"A = {studies[0].name}, B = {name}: {conclusion(rows)}" for name, rows in parts.items()
        ],
        "pictures": [source_of(png_of(differences(rows))) for rows in parts.values()],
        "tables": [
            table_texts(found.rows).to_dict("records"),
            found.settings.astype(str).to_dict("records"),
        ],
    }


def json_value(value: Any) -> Any:
    """``value`` for JSON: missing is null, infinities are strings, a frame is a list of rows."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return list(map(json_value, value))
    if pd.isna(value):
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int) else str(value)
