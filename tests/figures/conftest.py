"""Synthetic studies that obey known power laws, and a reader's eye: does any text of a figure lie on another?"""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from study.analysis import fit_exponents
from study.figures.selection import Rule

ALPHA, LAYERS, KINDS = 16.0, 12, ("q_proj", "down_proj")
FULL = {
    "ranks": tuple(4 * 2**k for k in range(10)),
    "seeds": (0, 1, 2),
    "steps": 50,
    "probed": range(51),
}
SMALL = {"ranks": (4, 16, 64, 256, 1024), "seeds": (0,), "steps": 15, "probed": (0, 1, 2, 4, 8, 15)}
TINY = {"ranks": (4, 32, 256), "seeds": (0, 1), "steps": 6, "probed": (0, 1, 6)}
BASE = {
    "study": "synthetic",
    "model": "smollm2",
    "data": "pydoc",
    "optimizer": "adamw",
    "lr": 1e-4,
    "alpha": ALPHA,
}


def build(
    *,
    ranks: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    probed: Sequence[int],
    rules: Sequence[tuple[str, float]] = (("lora", np.nan), ("rslora", np.nan)),
    settings: Sequence[dict[str, Any]] = ({},),
    status: Callable[[dict[str, Any]], str] = lambda cell: "complete",
    evaluated: Sequence[int] | None = None,
    fitted: bool = True,
) -> SimpleNamespace:
    """A study whose gradient norm goes as gamma sqrt(r), its first descent as gamma r and its output as gamma r^0.9.

    ``settings`` are overrides of the cells' columns, one family each. ``status`` names a cell's fate: a diverged one
    blows up halfway and is measured on with frozen weights, a running one stops there.
    """
    cells, metrics, probes = [], [], []
    for number, (setting, (scaling, p), rank, seed) in enumerate(
        product(settings, rules, ranks, seeds)
    ):
        size = float(min(rank, 1e6))  # infinite rank: some number, at the end of the others
        gamma = ALPHA * size ** -Rule.of(scaling, p).p
        cell = {
            **BASE,
            "init": "kaiming",
            "targets": "all-linear",
            "seed": seed,
            "data_seed": seed,
            **setting,
        }
        cell |= {
            "cell_id": f"cell{number:04d}",
            "rank": float(rank),
            "scaling": scaling,
            "exponent": p,
            "gamma": gamma,
        }
        cell["status"] = status(cell)
        half = steps // 2
        cell["diverged_step"] = half if cell["status"] == "diverged" else np.nan
        cells.append(cell)
        end = steps if cell["status"] != "running" else half

        batch = np.random.default_rng(
            [seed, 7]
        )  # within a seed every rank and rule sees the same batches
        own = np.random.default_rng([seed, number])
        speed = 0.75 * cell["lr"] / 1e-4 * (gamma * size**0.75) ** 0.35
        at = np.arange(steps + 1)
        loss = 2.1 + 0.9 * np.exp(-speed * at / steps) + 0.12 * batch.standard_normal(steps + 1)
        heldout = 2.2 + 0.7 * np.exp(-speed * at / steps) + 0.01 * own.standard_normal()
        shape = np.exp(-1.5 * at / steps + 0.15 * batch.standard_normal(steps + 1))
        norm = 0.3 * gamma * size**0.5 * shape * np.exp(0.02 * own.standard_normal(steps + 1))
        if cell["status"] == "diverged":
            loss[half - 2 : half + 1], loss[half + 1 :] = (3.5, 6.0, 40.0), 50.0
            norm[half:] = np.inf
        for step in range(end + 1):
            row = {
                "cell_id": cell["cell_id"],
                "step": step,
                "tokens": 192 * step,
                "lr": cell["lr"],
                "clip_factor": 1.0,
            }
            row |= (
                {"loss": loss[step], "grad_norm": norm[step]}
                if step < end
                else {"loss": np.nan, "grad_norm": np.nan}
            )
            row["eval_loss"] = (
                heldout[step]
                if step in ((0, steps) if evaluated is None else evaluated)
                else np.nan
            )
            metrics.append(row)
        for step in [step for step in probed if step < end or step == steps == end]:
            row = {"cell_id": cell["cell_id"], "step": step, "batch": "train"}
            model = {**row, "layer": "model", "block": -1, "kind": "model"}
            probes.append({**model, "site": "adapter_grad", "norm": norm[step]})
            if step < steps:
                descent = 1e-3 * gamma * size * shape[step] * np.exp(0.02 * own.standard_normal())
                probes.append({**model, "site": "adapter_update", "norm": 0.1, "descent": descent})
            for layer, kind in product(range(LAYERS), KINDS):
                rms = (
                    1e-3
                    * gamma
                    * size**0.9
                    * step**0.8
                    * np.exp(1.2 * np.sin(layer) + 0.05 * own.standard_normal())
                )
                named = {
                    "layer": f"layers.{layer}.{kind}",
                    "block": layer,
                    "kind": kind,
                    "site": "adapter_out",
                }
                probes.append({**row, **named, "mean_abs": 0.7 * rms, "rms": rms, "m4": 1.5 * rms})
    frames = [pd.DataFrame(rows) for rows in (cells, metrics, probes)]
    for column in ("cell_id", "layer", "kind", "site", "batch"):
        frames[2][column] = frames[2][column].astype("category")
    for stat in ("mean_abs", "rms", "m4", "norm", "descent"):
        frames[2][stat] = frames[2][stat].astype("float32")
    tables = SimpleNamespace(
        cells=frames[0], metrics=frames[1], probes=frames[2], exponents=pd.DataFrame()
    )
    if fitted:
        tables.exponents = exponents(tables)
    return tables


def exponents(tables: SimpleNamespace) -> pd.DataFrame:
    """The analysis' own table, with the exponents that the synthetic laws were made from as the predictions."""

    def predict(rows: pd.DataFrame) -> np.ndarray:
        known = {"adapter_grad": 0.5, "adapter_update": 1.0, "adapter_out": 0.9}
        power = rows["site"].astype(str).map(known).astype(float) - rows["exponent_p"].astype(float)
        return power.where((rows["site"] != "adapter_grad") | (rows["step"] == 0)).to_numpy(float)

    return fit_exponents(tables.cells, tables.probes, predict=predict)


@pytest.fixture(scope="session")
def full() -> SimpleNamespace:
    """10 ranks, 2 rules, 3 seeds, 50 steps."""
    return build(**FULL, evaluated=range(0, 51, 10))


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """The quick study's shape: 5 ranks, 2 rules, 1 seed, 15 steps."""
    return build(**SMALL)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., SimpleNamespace]:
    """A builder of small studies: 3 ranks, 2 rules, 2 seeds, 6 steps, and whatever is overridden."""
    return lambda **changes: build(**{**TINY, **changes})


# reading figures


def artists(figure: Figure, start: str) -> list[Any]:
    """The figure's artists whose gid starts with ``start``, in drawing order."""
    return list(figure.findobj(lambda a: str(a.get_gid() or "").startswith(start)))


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text()]


def collisions(figure: Figure) -> list[str]:
    """What a reader would trip over: text on text, a legend on a panel, anything cut off by the page's edge."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes: list[tuple[str, Any, Bbox]] = []
    for text, owner in _visible_texts(figure):
        # Half a point of grace: bounding boxes hold the side bearings of the glyphs.
        box = text.get_window_extent(renderer)
        boxes.append((repr(text.get_text()), owner, box.padded(-0.5 * figure.dpi / 72)))
    found = [f"{a} on {b}" for (a, _, x), (b, _, y) in combinations(boxes, 2) if x.overlaps(y)]
    page = figure.bbox.padded(1)
    found += [
        f"{a} off the page"
        for a, _, x in boxes
        if not (page.contains(x.x0, x.y0) and page.contains(x.x1, x.y1))
    ]
    panels = [ax for ax in _axes(figure) if ax.axison]
    for legend in figure.findobj(Legend):
        frame = legend.get_window_extent(renderer)
        boxes.append(("a legend", legend, frame))
        found += [
            f"{a} on a legend" for a, owner, x in boxes if owner is not legend and x.overlaps(frame)
        ]
        found += [
            "a legend on a panel" for ax in panels if ax.get_window_extent(renderer).overlaps(frame)
        ]
    inside = [(a, x) for a, owner, x in boxes if isinstance(owner, Axes)]
    found += [
        f"{a} on a panel"
        for a, x in inside
        for ax in panels
        if ax.get_window_extent(renderer).padded(-1).overlaps(x)
    ]
    found += [
        "panels overlap"
        for a, b in combinations(panels, 2)
        if a.get_window_extent(renderer).overlaps(b.get_window_extent(renderer))
    ]
    return found


def _axes(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.findobj(Axes) if ax.get_visible()]


def _visible_texts(figure: Figure) -> list[tuple[Text, Any]]:
    """Every text that is drawn, with what it belongs to: its axes, its legend, or None for the figure's own."""
    found: list[tuple[Text, Any]] = []
    for ax in _axes(figure):
        for axis in (ax.xaxis, ax.yaxis):
            found += [(t, ax) for t in _tick_labels(axis)] + [
                (axis.label, ax),
                (axis.get_offset_text(), ax),
            ]
        found += [(t, ax) for t in (ax.title, ax._left_title, ax._right_title, *ax.texts)]
        if legend := ax.get_legend():
            found += [(t, legend) for t in (*legend.get_texts(), legend.get_title())]
    for part in [figure, *figure.subfigs]:
        found += [(t, None) for t in part.texts]
    return [(t, owner) for t, owner in found if t.get_visible() and t.get_text().strip()]


def _tick_labels(axis: matplotlib.axis.Axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    ticks = [
        t
        for t in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if low - slack <= t.get_loc() <= high + slack
    ]
    return [
        label
        for t in ticks
        for label in (t.label1, t.label2)
        if t.get_visible() and label.get_visible()
    ]


@pytest.fixture(scope="session")
def read() -> SimpleNamespace:
    """``artists(figure, gid)``, ``texts(figure)`` and ``collisions(figure)``."""
    return SimpleNamespace(artists=artists, texts=texts, collisions=collisions)
