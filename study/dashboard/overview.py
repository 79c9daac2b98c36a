"""All that the page shows beside the probed values, as one JSON object: cells, verdicts, losses and colours."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from study.analysis.fits import t_critical
from study.analysis.grouping import curve_labels
from study.dashboard.following import FollowedCell, Following
from study.dashboard.probes import Layer, Quantity
from study.dashboard.verdicts import Verdicts
from study.figures import style
from study.figures.selection import Rule
from study.store import STATUSES
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import FIRST_READ, METRICS

CURVES = {name: METRICS[name].label for name in ("loss", "eval_loss", "grad_norm")}
MOST_POINTS = 400
"""Steps of a loss curve that a page draws; of more, it gets every second, third, and so on."""
MOST_DF = 200
"""Degrees of freedom up to which the page is given Student's t; beyond, the last is within 0.6 % of the normal's."""


def overview(study: Following, verdicts: Verdicts, live: bool) -> dict[str, Any]:
    """The object; every number in it is a JSON number, or null where it is missing, or the string of one that JSON has
    no word for. ``live``: whether the page is to ask for more."""
    cells = study.cells()
    rows, note = verdicts.of(study)
    return {
        "study": study.folder.resolve().name,
        "instance": study.instance,
        "live": live,
        "counts": {status: int((cells["status"] == status).sum()) for status in STATUSES},
        "cells": [
            _cell(study.followed[str(row["cell_id"])], row, setting)
            for row, setting in zip(cells.to_dict("records"), _settings(cells), strict=True)
        ],
        "configuration": _configuration(cells),
        "rules": _rules(cells),
        "optimizers": {str(name): label(str(name)) for name in cells["optimizer"]},
        "layers": [Layer(*layer)._asdict() for layer in study.layers],
        "quantities": [quantity._asdict() for quantity in in_order(study.quantities())],
        "curves": CURVES,
        "verdicts": [_verdict(row) for row in rows.to_dict("records")],
        "verdict_note": note,
        "t_critical": t_critical(np.arange(1, MOST_DF + 1)).tolist(),
    }


def fingerprint(page: dict[str, Any]) -> str:
    """An ETag: the same for the same page."""
    return hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()[:32]


def in_order(quantities: Sequence[Quantity]) -> list[Quantity]:
    """As they are worth reading: training batch first, then :data:`~study.vocabulary.quantities.FIRST_READ`, then as they come."""
    places = {pair: n for n, pair in enumerate(FIRST_READ)}
    return sorted(
        quantities, key=lambda q: (q.batch != "train", places.get((q.site, q.stat), len(places)))
    )


def _cell(cell: FollowedCell, row: Mapping[Any, Any], setting: str) -> dict[str, Any]:
    rule = Rule.of(row["scaling"], row["exponent"])
    done = cell.metrics["step"].max() if len(cell.metrics) else 0
    return {
        **{str(name): _plain(value) for name, value in row.items() if name != "study"},
        "rule": style.gid(rule),
        "setting": setting,
        "seed": _plain(row["seed"])
        if row["seed"] == row["data_seed"]
        else f"{row['seed']}, data {row['data_seed']}",
        "steps_done": int(done),
        "revision": cell.revision,
        "probed": len(cell.probes.steps),
        "curves": _curves(cell.metrics),
    }


def _curves(metrics: pd.DataFrame) -> dict[str, Any]:
    """Each curve of :data:`CURVES` as ``{"step": [...], "value": [...]}`` where it was measured."""
    found = {}
    for name in CURVES:
        rows = metrics[metrics[name].notna()]
        rows = rows.iloc[:: max(1, math.ceil(len(rows) / MOST_POINTS))]
        found[name] = {"step": rows["step"].tolist(), "value": _numbers(rows[name])}
    return found


def _numbers(column: "pd.Series[float]") -> list[Any]:
    values = column.to_numpy(float)
    return values.tolist() if np.isfinite(values).all() else [_plain(value) for value in values]


def _settings(cells: pd.DataFrame) -> list[str]:
    """Per cell what sets it apart from those of its optimizer, rule, rank and seed: ``lr 0.001``; ``""`` if nothing."""
    labels = curve_labels(cells).drop(columns=["scaling", "exponent_p"]).astype(object)
    differing = [
        name
        for name in map(str, labels)
        if labels.groupby(labels["optimizer"], observed=True)[name].nunique(dropna=False).max() > 1
    ]
    return [
        ", ".join(f"{name} {_word(row[name])}" for name in differing)
        for row in labels[differing].to_dict("records")
    ] or [""] * len(cells)


def _configuration(cells: pd.DataFrame) -> dict[str, Any]:
    """The configuration's columns that differ between cells, and the values of those that do not."""
    hidden = (
        "cell_id",
        "study",
        "status",
        "error",
        "diverged_step",
        "steps_done",
        "seconds",
        "peak_memory_gb",
    )
    columns = [str(name) for name in cells if name not in hidden]
    differ = [name for name in columns if cells[name].astype(str).nunique() > 1]
    return {
        "differ": differ,
        "same": {name: _word(cells[name].iloc[0]) for name in columns if name not in differ},
    }


def _rules(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Every rule with its name and the colours of its ranks, on white and on black, as the figures have them."""
    ranks = sorted(set(cells["rank"]))
    found = sorted(
        {Rule.of(s, p) for s, p in zip(cells["scaling"], cells["exponent"], strict=True)}
    )
    return [
        {
            "id": style.gid(rule),
            "name": style.LOOKS[rule.scaling].name
            + (f", p = {rule.p:g}" if rule.scaling == "power" else ""),
            "p": rule.p,
            "tint": {
                "light": _hex(style.tint(rule, found)),
                "dark": _hex(style.LOOKS[rule.scaling].shades(0.15)),
            },
            "shades": {
                "light": {_rank_name(rank): _hex(style.shade(rule, rank, ranks)) for rank in ranks},
                "dark": {
                    _rank_name(rank): _hex(_shade_on_dark(rule, rank, ranks)) for rank in ranks
                },
            },
            "marker": {"o": "circle", "s": "square", "^": "triangle-up"}[
                style.LOOKS[rule.scaling].marker
            ],
        }
        for rule in found
    ]


def _shade_on_dark(rule: Rule, rank: float, ranks: Sequence[float]) -> style.RGBA:
    """The same hue where the page is dark: there the highest rank is the lightest, so that it still stands out most."""
    if math.isinf(rank):
        return (1.0, 1.0, 1.0, 1.0)
    finite = [math.log(r) for r in ranks if math.isfinite(r)]
    low, high = min(finite), max(finite)
    at = 0.6 if low == high else (math.log(rank) - low) / (high - low)
    return style.LOOKS[rule.scaling].shades(0.62 * (1 - at))


def _rank_name(rank: float) -> str:
    """As JavaScript writes the number."""
    return "inf" if math.isinf(rank) else str(int(rank))


def _hex(colour: style.RGBA) -> str:
    return matplotlib.colors.to_hex(colour)


def _verdict(row: Mapping[Any, Any]) -> dict[str, Any]:
    scaling, _, p = str(row["rule"]).partition(" p=")
    names = (
        "optimizer",
        "curve",
        "quantity",
        "over",
        "step",
        "exponent",
        "ci_low",
        "ci_high",
        "predicted",
        "verdict",
    )
    rule = Rule.of(scaling, float(p) if p else None)
    return {
        **{
            name: _plain(row[name])
            for name in (*names, "interval", "seeds", "ranks", "rank_min", "rank_max")
        },
        "rule": style.gid(rule),
    }


def _word(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return (
            None
            if math.isnan(value)
            else float(value)
            if math.isfinite(value)
            else "inf"
            if value > 0
            else "-inf"
        )
    return str(value)
