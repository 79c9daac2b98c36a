"""Everything on the page except the probed values, as one JSON object."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from study.analysis.compare import compare, conclusion, differing_settings, table_texts
from study.analysis.grouping import CURVE_ID, curve_labels
from study.analysis.text import json_value
from study.analysis.wording import (
    INTERVAL,
    STRAIGHTNESS,
    batch_words,
    curve_settings,
    setting_text,
    settings,
)
from study.dashboard.studies import ShownStudy
from study.dashboard.values import Values
from study.errors import StudyError
from study.figures import style
from study.figures.exponents import differences
from study.figures.selection import DrawnRule, rules_of
from study.report.page import png_of, source_of
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BEST_RHO, METRICS, RHO, SITES, STATS
from study.vocabulary.statuses import BROKEN, STATUSES, end_step, note
from study.vocabulary.verdicts import glossary

CURVES = {name: METRICS[name].label for name in ("loss", "eval_loss", "grad_norm")}
"""The metrics with a curve on the page."""
MOST_POINTS = 400
"""Points of a curve on the page. Longer curves are thinned out."""

NOT_CONFIGURATION = (
    *("cell_id", "study", "status", "error", "diverged_step", "stuck_step", "steps_done"),
    *("seconds", "peak_memory_gb"),
)
"""The columns of ``cells`` that are not part of the configuration."""
PLOTLY_MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}
"""Plotly's names for matplotlib's markers. Any other becomes a cross."""


def overview(studies: Sequence[ShownStudy], values: Values, live: bool) -> dict[str, Any]:
    """The object. Missing numbers are null, infinities strings. ``live``: whether the page can
    request updates."""
    names = [study.name for study in studies]
    return {
        "study": ", ".join(names),
        "studies": names,
        "live": live,
        "quantities": [quantity._asdict() for quantity in values.measured()],
        "pages": [_of_study(study, values) for study in studies],
        "comparison": comparison(studies),
        "words": _words(),
    }


def _words() -> dict[str, Any]:
    """The parts that all studies share: labels, meanings, and the range of a statistic in which
    studies have their lowest loss."""
    return {
        "labels": {
            "site": {name: site.label for name, site in SITES.items()},
            "stat": {name: stat.label for name, stat in STATS.items()},
            "curve": CURVES,
            "unit": {name: METRICS[name].unit for name in CURVES},
        },
        "glossary": glossary(),
        "best": {RHO: BEST_RHO},
        "states": {
            name: {
                "symbol": row.symbol,
                "colour": row.colour,
                "stopped_early": row.has_ended and (bool(row.ended_at) or not row.is_done),
                "done": row.is_done,
            }
            for name, row in STATUSES.items()
        },
        "interval": INTERVAL,
        "straightness": STRAIGHTNESS,
    }


def _of_study(study: ShownStudy, values: Values) -> dict[str, Any]:
    prefix, cells, metrics = study.prefix, study.tables.cells, dict[str, pd.DataFrame]()
    labels = curve_labels(cells)
    if len(study.tables.metrics):
        by_cell = study.tables.metrics.groupby("cell_id", observed=True)
        metrics = {str(cell): rows for cell, rows in by_cell}
    counts = {status: int((cells["status"] == status).sum()) for status in STATUSES}
    quantities = values.measured(prefix)
    return {
        "study": study.name,
        "report": study.report,
        "cells": [
            _cell(row, metrics.get(str(row["cell_id"])))
            | {
                "key": (key := prefix + str(row["cell_id"])),
                "curve": prefix + curve,
                "setting": setting,
                "probed": len(values.steps.get(key, ())),
            }
            for row, setting, curve in zip(
                cells.to_dict("records"),
                curve_settings(labels.astype(object)),
                labels[CURVE_ID].astype(str),
                strict=True,
            )
        ],
        "unreadable": [
            {"cell_id": name, "note": why} for name, why in sorted(study.unreadable.items())
        ],
        "counts": counts | {"unreadable": len(study.unreadable)},
        "rules": rule_looks(cells),
        "configuration": configuration(cells),
        "optimizers": {str(name): label(str(name)) for name in cells["optimizer"]},
        "layers": values.layers_of(prefix),
        "quantities": [quantity._asdict() for quantity in quantities],
        "batches": batch_words(quantity.batch for quantity in quantities),
    }


def _cell(row: Mapping[Any, Any], metrics: pd.DataFrame | None) -> dict[str, Any]:
    seed, data_seed = row["seed"], row["data_seed"]
    return {
        **{str(name): json_value(value) for name, value in row.items() if name != "study"},
        "rule": style.gid(DrawnRule.of(row["scaling"], row["exponent"], row["crossover"])),
        "seed": json_value(seed) if seed == data_seed else f"{seed}, data {data_seed}",
        "steps_done": 0 if metrics is None else int(metrics["step"].max()),
        "curves": {name: _curve(metrics, name) for name in CURVES},
        "end_step": json_value(end_step(row)) if math.isfinite(end_step(row)) else None,
        "note": f"lr {row['lr']:g}: {note(row)}" if row["status"] in BROKEN else note(row),
    }


def _curve(metrics: pd.DataFrame | None, name: str) -> dict[str, Any]:
    """``{"step": [...], "value": [...]}``; a long curve keeps every 2nd, 4th, 8th ... point and its
    last."""
    if metrics is None or name not in metrics:
        return {"step": [], "value": []}
    values = metrics[name].to_numpy(float)
    at = np.flatnonzero(~np.isnan(values))
    every = 1
    while len(at) > every * MOST_POINTS:
        every *= 2
    at = np.union1d(at[::every], at[-1:])
    steps = metrics["step"].to_numpy()[at]
    return {"step": steps.tolist(), "value": list(map(json_value, values[at].tolist()))}


def rule_looks(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """One object per rule, with the figures' colours, and a variant for the ``dark`` page.

    ``id``, ``name``, ``marker``; ``has_own_p``: whether the rule fixes its exponent, as LoRA and
    rsLoRA do; ``tint``: the colour of the rule; ``shades``: a colour per rank.
    """
    ranks = sorted(set(cells["rank"]))
    keys = [("inf" if math.isinf(rank) else str(int(rank)), rank) for rank in ranks]
    rules = sorted({*rules_of(curve_labels(cells))})
    return [
        {
            "id": style.gid(rule),
            "name": style.name(rule),
            "marker": PLOTLY_MARKERS.get(style.rule_look(rule.scaling).marker, "cross"),
            "has_own_p": rule.has_own_p,
            "tint": {
                "light": to_hex(style.look(rule, rules)["color"]),
                "dark": to_hex(style.rule_look(rule.scaling).shades(0.15)),
            },
            "shades": {
                theme: {
                    key: to_hex(style.shade(rule, rank, ranks, dark=theme == "dark"))
                    for key, rank in keys
                }
                for theme in ("light", "dark")
            },
        }
        for rule in rules
    ]


def configuration(cells: pd.DataFrame) -> dict[str, Any]:
    """``main``: the line of settings that figures have. ``differ``: the keys whose values differ
    between cells. ``rest``: the value of every other key."""
    if cells.empty:
        return {"differ": [], "main": "", "rest": {}}
    columns = [str(name) for name in cells if name not in NOT_CONFIGURATION]
    differ = [name for name in columns if cells[name].astype(str).nunique() > 1]
    texts = {name: setting_text(cells[name].iloc[0]) for name in columns if name not in differ}
    rest = {name: text for name, text in texts.items() if text != "none"}
    return {"differ": differ, "main": settings(cells), "rest": rest}


def comparison(studies: Sequence[ShownStudy]) -> dict[str, Any]:
    """The first study compared with each other one, as by ``study compare``; empty for one."""
    if len(studies) < 2:
        return {}
    nothing: dict[str, Any] = {"pictures": [], "tables": []}
    if without := [one.name for one in studies if one.tables.metrics.empty]:
        return {"sentences": [f"{without[0]} has no numbers yet."], **nothing}
    tables = {one.name: one.tables for one in studies}
    try:
        found = compare(tables)
    except StudyError as error:
        return {"sentences": [str(error)], **nothing}
    parts = {str(name): rows for name, rows in found.groupby("study", sort=False)}
    return {
        "sentences": [
            f"A = {studies[0].name}, B = {name}: {conclusion(rows)}" for name, rows in parts.items()
        ],
        "pictures": [source_of(png_of(differences(rows))) for rows in parts.values()],
        "tables": [
            table_texts(found).to_dict("records"),
            differing_settings(tables).astype(str).to_dict("records"),
        ],
    }
