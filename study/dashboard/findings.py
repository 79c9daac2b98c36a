"""The verdicts, p* and final losses of a study, as objects for the page.

All numbers and words come from :mod:`study.analysis`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import compared_losses, headline
from study.analysis.compare import compare, conclusion, table_texts
from study.analysis.grouping import RULE
from study.analysis.losses import final_losses
from study.analysis.summary import OVER_MODEL
from study.analysis.wording import (
    TESTED,
    bend_text,
    bracket_head,
    bracket_notes,
    factor_text,
    number_text,
)
from study.dashboard.studies import Study
from study.errors import StudyError
from study.figures import style
from study.figures.selection import Rule
from study.report.sections import p_star_section
from study.vocabulary.quantities import METRICS, MODEL_WIDE, PRIMARY
from study.vocabulary.statuses import note
from study.vocabulary.verdicts import ONE_SEED

FIXED_STEPS = {step for q in PRIMARY for step in q.primary_at if isinstance(step, int)}
"""The steps of the primary verdicts, except the last one measured."""
VERDICT_FIELDS = (
    *("optimizer", "curve", "quantity", "over", "batch", "step", "exponent", "ci_low", "ci_high"),
    *("site", "stat", "predicted", "estimate", "verdict", "interval", "seeds", "ranks"),
    *("rank_min", "rank_max"),
)
AXIS = f"final {METRICS['eval_loss'].label} ({METRICS['eval_loss'].unit})"


def verdicts(study: Study) -> dict[str, Any]:
    """The rows of the verdict table, what their brackets show, and the notes below it."""
    if study.note:
        return {"verdicts": [], "brackets": "", "verdict_notes": [study.note]}
    rows = headline(study.tables.exponents)
    tested = [] if (rows["verdict"] == ONE_SEED).all() else [TESTED]
    pairs = rows[["rank_min", "rank_max"]].drop_duplicates().itertuples(index=False)
    spans = " or ".join(f"{low:.0f} to {high:.0f}" for low, high in pairs)
    factor = f"× is the factor from the lowest to the highest rank ({spans})."
    return {
        "verdicts": [_verdict(row) for row in rows.itertuples(index=False)],
        "brackets": bracket_head(rows),
        "verdict_notes": [*tested, *bracket_notes(rows), factor],
    }


def _verdict(row: Any) -> dict[str, Any]:
    """A row of the summary: its numbers for the bar, and its texts, which are the report's."""
    labels = {(q.site, q.stat): q.label for q in PRIMARY}
    return {
        **{name: json_value(getattr(row, name)) for name in VERDICT_FIELDS},
        "rule": style.gid(Rule.of(row.scaling, row.exponent_p, row.crossover)),
        "label": labels[row.site, row.stat],
        "layer": "mean" if row.over != OVER_MODEL else MODEL_WIDE,
        "at_last_step": row.step not in FIXED_STEPS,
        "factor": factor_text(row.factor),
        "theory": number_text(row.predicted),
        "bend": bend_text(row),
    }


def p_star(study: Study) -> dict[str, Any]:
    """The report's rows on p* and the notes on them."""
    section = p_star_section(study.tables)
    rows = [
        {head.replace("\\", ""): text for head, text in row.items()}
        for row in section.get("rows", [])
    ]
    return {"rows": rows, "notes": section.get("notes", "") + section.get("note", "")}


def held_out(study: Study) -> dict[str, Any]:
    """The final held-out losses of the cells that have ended.

    - ``runs``: a row per cell, for the losses against the learning rate; ``note``: how it ended;
    - ``compared``: the rows of :func:`study.analysis.compared_losses`;
    - ``group`` of a row is a number: ranks, rules and learning rates compare within a group;
    - ``groups``: the group by cell id.

    A loss is null if the run diverged.
    """
    tables = study.tables.cells, study.tables.metrics
    if tables[0].empty:
        return {"runs": [], "compared": [], "groups": {}}
    runs, compared = (
        table(*tables).to_dict("records") for table in (final_losses, compared_losses)
    )
    notes = {str(cell["cell_id"]): note(cell) for cell in tables[0].to_dict("records")}
    return {
        "runs": [_loss(row) | {"note": notes[row["cell_id"]]} for row in runs],
        "compared": [
            _loss(row) | {"how": row["how"], "edge": row["edge"] != ""} for row in compared
        ],
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


def comparison(studies: Sequence[Study]) -> dict[str, Any]:
    """The first study compared with each other one, as ``study compare`` does it; empty for one.

    ``settings``: a row of texts per setting that differs. ``rows``: texts, and ``differs``: whether
    the interval of the difference excludes 0. ``notes``: a summary of the rows.
    """
    if len(studies) < 2:
        return {}
    if without := [one.name for one in studies if one.tables.metrics.empty]:
        return {"settings": [], "rows": [], "notes": [f"{without[0]} has no numbers yet."]}
    try:
        found = compare({one.name: one.tables for one in studies})
    except StudyError as error:
        return {"settings": [], "rows": [], "notes": [str(error)]}
    texts = table_texts(found.rows)
    texts["differs"] = (found.rows["ci_low"] > 0) | (found.rows["ci_high"] < 0)
    return {
        "settings": found.settings.astype(str).to_numpy().tolist(),
        "rows": texts.to_dict("records"),
        "notes": [
            f"{name}: {conclusion(rows)}" for name, rows in found.rows.groupby("study", sort=False)
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
