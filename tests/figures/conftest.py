"""Synthetic studies with known power laws."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from study.analysis import fit_exponents
from study.analysis.grouping import gammas
from study.vocabulary.statuses import BROKEN, STATUSES

ALPHA, LAYERS, KINDS = 16.0, 12, ("q_proj", "down_proj")
BASE = {
    "study": "synthetic",
    "model": "smollm2",
    "data": "pydoc",
    "optimizer": "adamw",
    "lr": 1e-4,
    "alpha": ALPHA,
}


Row = dict[str, Any]


def tiny(
    *,
    ranks: Sequence[float] = (4, 32, 256),
    seeds: Sequence[int] = (0, 1),
    steps: int = 6,
    probed: Sequence[int] = (0, 1, 6),
    rules: Sequence[tuple[str, float]] = (("lora", np.nan), ("rslora", np.nan)),
    settings: Sequence[Row] = ({},),
    status: Callable[[Row], str] = lambda cell: "complete",
    evaluated: Sequence[int] | None = None,
    fitted: bool = True,
) -> SimpleNamespace:
    """A study with known exponents: gradient norm gamma sqrt(r), descent gamma r, output
    gamma r^0.9.

    - ``settings``: overrides of the cells' columns, one family each;
    - ``status``: how a cell ends. A diverged cell diverges halfway, and is measured on with frozen
      weights. A stuck cell has no gradient from halfway on. A running cell stops halfway.
    """
    cells, metrics, probes = [], [], []
    plan = product(settings, rules, ranks, seeds)
    for number, (setting, (scaling, p), rank, seed) in enumerate(plan):
        cell = _cell(number, setting, scaling, p, rank, seed)
        cell["status"] = status(cell)
        cell["seconds"] = math.nan if cell["status"] == "running" else 60.0 + number
        for broken in BROKEN:
            ended = steps // 2 if cell["status"] == broken else np.nan
            cell[STATUSES[broken].ended_at] = ended
        cells.append(cell)
        course = _course(cell, steps, np.random.default_rng([seed, number]))
        metrics += _metrics(cell, course, steps, (0, steps) if evaluated is None else evaluated)
        end = steps // 2 if cell["status"] == "running" else steps
        for step in [step for step in probed if step < end or step == steps == end]:
            probes += _probes(cell, course, step, steps)
    frames = [pd.DataFrame(rows) for rows in (cells, metrics, probes)]
    for column in ("cell_id", "layer", "kind", "site", "batch"):
        frames[2][column] = frames[2][column].astype("category")
    for stat in ("mean_abs", "rms", "m4", "norm", "descent"):
        frames[2][stat] = frames[2][stat].astype("float32")
    tables = SimpleNamespace(
        cells=frames[0], metrics=frames[1], probes=frames[2], exponents=pd.DataFrame()
    )
    if fitted:  # with the exponents of these laws as predictions
        fits = fit_exponents(tables.cells, tables.probes)
        known = {"adapter_grad": 0.5, "adapter_update": 1.0, "adapter_out": 0.9}
        power = fits["site"].astype(str).map(known).astype(float) - fits["exponent_p"].astype(float)
        told = power.where((fits["site"] != "adapter_grad") | (fits["step"] == 0))
        tables.exponents = fits.assign(predicted=told.to_numpy(float))
    return tables


def _size(cell: Row) -> float:
    """The rank; for infinite rank a number beyond the others."""
    return float(min(cell["rank"], 1e6))


def _cell(number: int, setting: Row, scaling: str, p: float, rank: float, seed: int) -> Row:
    cell = {**BASE, "init": "kaiming", "targets": "all-linear", "seed": seed, "data_seed": seed}
    cell |= {**setting, "cell_id": f"cell{number:04d}", "rank": float(rank)}
    cell |= {"scaling": scaling, "exponent": math.nan if scaling == "crossover" else p}
    rule = {"scaling": scaling, "exponent_p": p, "crossover": p}
    gamma = ALPHA * gammas(rule, [_size(cell)])[0]
    return cell | {"crossover": p if scaling == "crossover" else math.nan, "gamma": gamma}


def _course(cell: Row, steps: int, own: np.random.Generator) -> SimpleNamespace:
    """What happens to a cell, by step; ``own``: its random numbers."""
    # Within a seed every rank and rule sees the same batches.
    batch = np.random.default_rng([cell["seed"], 7])
    gamma, size, at = cell["gamma"], _size(cell), np.arange(steps + 1)
    speed = 0.75 * cell["lr"] / 1e-4 * (gamma * size**0.75) ** 0.35
    loss = 2.1 + 0.9 * np.exp(-speed * at / steps) + 0.12 * batch.standard_normal(steps + 1)
    heldout = 2.2 + 0.7 * np.exp(-speed * at / steps) + 0.01 * own.standard_normal()
    shape = np.exp(-1.5 * at / steps + 0.15 * batch.standard_normal(steps + 1))
    norm = 0.3 * gamma * size**0.5 * shape * np.exp(0.02 * own.standard_normal(steps + 1))
    if cell["status"] == "diverged":
        half = steps // 2
        loss[half - 2 : half + 1], loss[half + 1 :] = (3.5, 6.0, 40.0), 50.0
        norm[half:] = np.inf
    if cell["status"] == "stuck":
        loss[steps // 2 :] = heldout[steps // 2 :] = 2.9
        norm[steps // 2 :] = 0.0
    return SimpleNamespace(loss=loss, heldout=heldout, norm=norm, shape=shape, own=own)


def _metrics(cell: Row, course: SimpleNamespace, steps: int, evaluated: Sequence[int]) -> list[Row]:
    end = steps // 2 if cell["status"] == "running" else steps
    return [
        {
            "cell_id": cell["cell_id"],
            "step": step,
            "tokens": 192 * step,
            "lr": cell["lr"],
            "clip_factor": 1.0,
            "loss": course.loss[step] if step < end else np.nan,
            "grad_norm": course.norm[step] if step < end else np.nan,
            "eval_loss": course.heldout[step] if step in evaluated else np.nan,
        }
        for step in range(end + 1)
    ]


def _probes(cell: Row, course: SimpleNamespace, step: int, steps: int) -> list[Row]:
    """The rows of one step: two of the whole model, one for each layer."""
    gamma, size, own = cell["gamma"], _size(cell), course.own
    row = {"cell_id": cell["cell_id"], "step": step, "batch": "train"}
    model = {**row, "layer": "model", "block": -1, "kind": "model"}
    rows = [{**model, "site": "adapter_grad", "norm": course.norm[step]}]
    if step < steps:
        descent = 1e-3 * gamma * size * course.shape[step] * np.exp(0.02 * own.standard_normal())
        rows.append({**model, "site": "adapter_update", "norm": 0.1, "descent": descent})
    for layer, kind in product(range(LAYERS), KINDS):
        spread = np.exp(1.2 * np.sin(layer) + 0.05 * own.standard_normal())
        rms = 1e-3 * gamma * size**0.9 * step**0.8 * spread
        place = {"layer": f"layers.{layer}.{kind}", "block": layer, "kind": kind}
        moments = {"mean_abs": 0.7 * rms, "rms": rms, "m4": 1.5 * rms}
        rows.append({**row, **place, "site": "adapter_out", **moments})
    return rows


@pytest.fixture(scope="session")
def full() -> SimpleNamespace:
    """10 ranks, 2 rules, 3 seeds, 50 steps."""
    ranks, evaluated = tuple(4 * 2**k for k in range(10)), range(0, 51, 10)
    return tiny(ranks=ranks, seeds=(0, 1, 2), steps=50, probed=(0, 1, 50), evaluated=evaluated)


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """As the quick study: 5 ranks, 2 rules, 1 seed, 15 steps."""
    ranks, probed = (4, 16, 64, 256, 1024), (0, 1, 2, 4, 8, 15)
    return tiny(ranks=ranks, seeds=(0,), steps=15, probed=probed)


# reading figures


def panels(figure: Figure) -> list[Axes]:
    """The visible panels, without colour bars."""
    return [ax for ax in figure.axes if ax.get_label() != "legend" and ax.get_visible()]


def artists(figure: Figure, start: str, ax: Axes | None = None) -> list[Any]:
    """The artists whose gid starts with ``start``, in drawing order; those of one panel."""
    found = figure.findobj(lambda a: str(a.get_gid() or "").startswith(start))
    return [one for one in found if ax is None or one.axes is ax]


def only(figure: Figure, start: str, ax: Axes | None = None) -> Any:
    (found,) = artists(figure, start, ax)
    return found


def said(figure: Figure) -> str:
    """All visible texts, without line breaks."""
    every = [t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    return " ".join(every).replace("\n", " ")


def rows(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows of a table with these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def row(table: pd.DataFrame, **where: object) -> pd.Series:
    (found,) = (one for _, one in rows(table, **where).iterrows())
    return found
