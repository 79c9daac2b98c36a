"""Everything on the page except the probed values, as one JSON object."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from study.analysis.fits import t_critical
from study.analysis.grouping import curve_labels, distinguishing
from study.analysis.rank_stabilized import BATCHES_OF
from study.analysis.summary import OVER_MODEL
from study.analysis.wording import (
    INTERVAL,
    STRAIGHTNESS,
    TESTED,
    batch_words,
    bend_text,
    bracket_head,
    bracket_notes,
    factor_text,
    number_text,
)
from study.dashboard.colours import rule_looks
from study.dashboard.following import FollowedCell, FollowedStudy
from study.dashboard.losses import AXIS, HOW
from study.dashboard.p_star import p_star
from study.dashboard.probes import Layer, Quantity
from study.dashboard.verdicts import FIXED_STEPS, Verdicts
from study.errors import printable
from study.figures import style
from study.figures.selection import Rule
from study.vocabulary.glossary import glossary
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import (
    FIRST_READ,
    METRICS,
    MODEL_WIDE,
    PRIMARY,
    SITES,
    STATS,
    TRAIN,
)
from study.vocabulary.statuses import STATUSES, Status, end_step, note
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import ONE_SEED, VERDICTS, meaning

CURVES = {name: METRICS[name].label for name in ("loss", "eval_loss", "grad_norm")}
"""The metrics with a curve on the page."""
MOST_POINTS = 400
"""Points of a curve on the page. Longer curves are thinned out."""
MOST_DF = 200
"""The page gets Student's t up to this many degrees of freedom, and uses the last value beyond it.
That is within 0.6 % of the normal distribution's."""

NOT_CONFIGURATION = (
    *("cell_id", "study", "status", "error", "diverged_step", "stuck_step", "steps_done"),
    *("seconds", "peak_memory_gb"),
)
"""The columns of ``cells`` that are not part of the configuration."""

MAIN = {
    "model": "model {}",
    "data": "data {}",
    "steps": "{} steps",
    "batch_size": "batch size {}",
    "optimizer": "{}",
    "lr": "learning rate {}",
    "alpha": "alpha {}",
    "init": "init {}",
    "targets": "targets {}",
    "precision": "{}",
    "seed": "seed {}",
}
"""The settings that a reader needs first, each with its words. The page hides the others behind a
disclosure."""
MOST_VALUES = 6
"""Values of a setting that its line lists."""

VERDICT_FIELDS = (
    *("optimizer", "curve", "quantity", "over", "batch", "step"),
    *("exponent", "ci_low", "ci_high"),
    *(
        "site",
        "stat",
        "predicted",
        "estimate",
        "verdict",
        "interval",
        "seeds",
        "ranks",
        "rank_min",
        "rank_max",
    ),
)


def overview(study: FollowedStudy, verdicts: Verdicts, live: bool) -> dict[str, Any]:
    """The object. Missing numbers are null; infinities are strings, since JSON cannot hold them.

    ``live``: whether the page can request updates.
    """
    cells = study.cells()
    found = verdicts.of(study)
    return {
        "study": study.folder.resolve().name,
        "studies": [study.folder.resolve().name],
        "instance": study.instance,
        "live": live,
        "counts": _counts(cells, study),
        "cells": [
            _cell(study.followed[str(row["cell_id"])], row, setting)
            | {"loss_group": found.losses["groups"].get(str(row["cell_id"]))}
            for row, setting in zip(cells.to_dict("records"), _settings(cells), strict=True)
        ],
        "unreadable": [
            {"cell_id": name, "note": printable(cell.reason, 1000)}
            for name, cell in sorted(study.unreadable.items())
        ],
        "configuration": configuration(cells),
        "rules": rule_looks(cells),
        "optimizers": {str(name): label(str(name)) for name in cells["optimizer"]},
        "layers": [Layer(*layer)._asdict() for layer in study.layers],
        "quantities": [quantity._asdict() for quantity in in_order(study.quantities())],
        "batches": batch_words(quantity.batch for quantity in study.quantities()),
        "labels": {
            "site": {name: site.label for name, site in SITES.items()},
            "stat": {name: stat.label for name, stat in STATS.items()},
            "curve": CURVES,
            "unit": {name: METRICS[name].unit for name in CURVES},
            "how": HOW,
            "final_loss": AXIS,
        },
        "glossary": glossary(),
        "states": {name: _state(row) for name, row in STATUSES.items()},
        **_verdicts(found.rows, found.note),
        "p_star": p_star(found.stable),
        "losses": {name: found.losses[name] for name in ("runs", "compared")},
        "interval": INTERVAL,
        "straightness": STRAIGHTNESS,
        "words": {
            word: {
                "symbol": row.symbol,
                "colour": row.colour,
                "meaning": meaning(word, STABLE_RATIO),
            }
            for word, row in VERDICTS.items()
        },
        "t_critical": t_critical(np.arange(1, MOST_DF + 1)).tolist(),
    }


def fingerprint(page: dict[str, Any]) -> str:
    """An ETag: a hash of the page."""
    return hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()[:32]


def in_order(quantities: Sequence[Quantity]) -> list[Quantity]:
    """:data:`~study.vocabulary.quantities.FIRST_READ` first.

    Of one site and statistic, the batch on which the report reads the paper's condition comes
    first. At other sites the training batch does.
    """
    places = {pair: n for n, pair in enumerate(FIRST_READ)}
    condition = {quantity.site: batches[0] for quantity, batches in BATCHES_OF.items()}
    return sorted(
        quantities,
        key=lambda q: (
            places.get((q.site, q.stat), len(places)),
            q.batch != condition.get(q.site, TRAIN),
        ),
    )


def _counts(cells: pd.DataFrame, study: FollowedStudy) -> dict[str, int]:
    counts = {status: int((cells["status"] == status).sum()) for status in STATUSES}
    return counts | {"unreadable": len(study.unreadable)}


def _cell(cell: FollowedCell, row: Mapping[Any, Any], setting: str) -> dict[str, Any]:
    seed, data_seed = row["seed"], row["data_seed"]
    return {
        **{str(name): _json(value) for name, value in row.items() if name != "study"},
        "key": str(row["cell_id"]),
        "study": 0,
        "rule": style.gid(Rule.of(row["scaling"], row["exponent"])),
        "setting": setting,
        "seed": _json(seed) if seed == data_seed else f"{seed}, data {data_seed}",
        "steps_done": int(cell.metrics["step"].to_numpy().max()) if len(cell.metrics) else 0,
        "revision": cell.revision,
        "probed": len(cell.probes.steps),
        "curves": _curves(cell.metrics),
        "end_step": _json(end_step(row)) if math.isfinite(end_step(row)) else None,
        "note": note(row),
    }


def _curves(metrics: pa.Table) -> dict[str, Any]:
    """The curves of :data:`CURVES` as ``{"step": [...], "value": [...]}`` at the measured steps.

    A long curve is thinned out to every 2nd, 4th, 8th ... point and its last one, so that seeds of
    different lengths have common steps, at which the page averages them.
    """
    step, found = metrics["step"].to_numpy(), {}
    for name in CURVES:
        values = metrics[name].to_numpy()
        rows = np.flatnonzero(~np.isnan(values))
        every = 1
        while len(rows) > every * MOST_POINTS:
            every *= 2
        rows = np.union1d(rows[::every], rows[-1:])
        found[name] = {"step": step[rows].tolist(), "value": _json_list(values[rows])}
    return found


def _settings(cells: pd.DataFrame) -> list[str]:
    """By cell, the settings that differ within its optimizer: ``lr 0.001``; empty if none do.

    Rule, rank and seed are not among them.
    """
    labels = curve_labels(cells).astype(object)
    differing = distinguishing(labels, map(str, labels))
    return [
        ", ".join(f"{name} {_text(row[name])}" for name in differing)
        for row in labels[differing].to_dict("records")
    ] or [""] * len(cells)


def configuration(cells: pd.DataFrame) -> dict[str, Any]:
    """``differ``: the keys whose values differ between cells. ``main``: the values of
    :data:`MAIN`, in words. ``rest``: the value of every other key that is the same in all cells."""
    if cells.empty:
        return {"differ": [], "main": [], "rest": {}}
    columns = [str(name) for name in cells if name not in NOT_CONFIGURATION]
    differ = [name for name in columns if cells[name].astype(str).nunique() > 1]
    return {
        "differ": differ,
        "main": [
            words.format(_values(cells[name])) for name, words in MAIN.items() if name in cells
        ],
        "rest": {
            name: _text(cells[name].iloc[0])
            for name in columns
            if name not in differ and name not in MAIN and _text(cells[name].iloc[0]) != "none"
        },
    }


def _values(column: "pd.Series[Any]") -> str:
    """The distinct values of a column, optimizers by their labels; how many if they are many."""
    values = sorted(set(column.dropna()), key=lambda value: (isinstance(value, str), value))
    if len(values) > MOST_VALUES:
        return f"{len(values)} values from {_text(values[0])} to {_text(values[-1])}"
    name = label if column.name == "optimizer" else _text
    return ", ".join(map(name, values)) or "none"


def _verdicts(rows: pd.DataFrame, why_none: str) -> dict[str, Any]:
    """The rows of the verdict table, what their brackets show, and the notes below it."""
    if rows.empty:
        return {"verdicts": [], "brackets": "", "verdict_notes": [why_none]}
    tested = [] if (rows["verdict"] == ONE_SEED).all() else [TESTED]
    return {
        "verdicts": [_verdict(row) for row in rows.itertuples(index=False)],
        "brackets": bracket_head(rows),
        "verdict_notes": [*tested, *bracket_notes(rows), *_spans(rows)],
    }


def _verdict(row: Any) -> dict[str, Any]:
    """A row of the summary: its numbers for the bar, and its texts, which are the report's."""
    labels = {(q.site, q.stat): q.label for q in PRIMARY}
    return {
        **{name: _json(getattr(row, name)) for name in VERDICT_FIELDS},
        "rule": style.gid(Rule.of(row.scaling, row.exponent_p)),
        "label": labels[row.site, row.stat],
        "layer": "mean" if row.over != OVER_MODEL else MODEL_WIDE,
        "at_last_step": row.step not in FIXED_STEPS,
        "factor": factor_text(row.factor),
        "theory": number_text(row.predicted),
        "bend": bend_text(row),
    }


def _spans(rows: pd.DataFrame) -> list[str]:
    """Over which ranks the factors are."""
    pairs = rows[["rank_min", "rank_max"]].drop_duplicates().itertuples(index=False)
    spans = " or ".join(f"{low:g} to {high:g}" for low, high in pairs)
    return [f"× is the factor from the lowest to the highest rank ({spans})."]


def _state(status: Status) -> dict[str, Any]:
    """How the page shows a state. ``stopped_early``: its cells do not reach the last step;
    ``done``: a sweep does not train them again."""
    stopped = status.has_ended and (bool(status.ended_at) or not status.is_done)
    return {
        "symbol": status.symbol,
        "colour": status.colour,
        "stopped_early": stopped,
        "done": status.is_done,
    }


def _text(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _json_list(values: npt.NDArray[np.float64]) -> list[Any]:
    return values.tolist() if np.isfinite(values).all() else [_json(value) for value in values]


def _json(value: Any) -> Any:
    """A value that JSON can hold."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if not isinstance(value, float | np.floating):
        return str(value)
    if math.isnan(value):
        return None
    return float(value) if math.isfinite(value) else str(float(value))
