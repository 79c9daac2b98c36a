"""A study on disk with known numbers: SGD's scaling laws, exactly."""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.analysis import load_tables
from study.report import as_markdown, report_of
from study.store import load_records
from study.vocabulary.quantities import MODEL_WIDE, TRAIN
from study.vocabulary.statuses import STATUSES
from tests.store.small_cells import CONFIG, opened

P = {"lora": 1.0, "rslora": 0.5}
ALPHA = 16.0
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")

Cell = Mapping[str, Any]
OfCellAndStep = Callable[[Cell, int], float]


@pytest.fixture
def on_disk(on_disk_in, tmp_path) -> Callable[..., Path]:
    """``on_disk(seeds=(0,), ...)`` writes a study and returns its folder, ``results/known``."""
    return partial(on_disk_in, tmp_path)


@pytest.fixture(scope="session")
def on_disk_in() -> Callable[..., Path]:
    """``on_disk_in(place, seeds=(0,), ...)`` writes a study to ``results/known`` in ``place``."""

    def write(
        place,
        *,
        seeds=(0, 1, 2, 3, 4),
        ranks=(4, 32, 256),
        lrs=(0.001,),
        rules=P,
        optimizer=None,
        final=lambda cell: final_loss(cell["lr"]),
        lazy=lambda cell: 1.0,
        norm=lambda cell, step: flat_norm(cell),
        outputs=None,
        status=lambda cell: "complete",
        gradient=0.01,
        steps=200,
        probed=(0, 1),
        record=None,
    ):
        """``rules``: by name, the p; one of the power rule is named ``power 0.75``.

        ``final``, ``lazy`` and ``status`` are functions of a cell: the held-out loss after
        training, the actual loss change over the linear prediction, and its final status.
        ``norm`` is the gradient norm. ``outputs``: by batch, the rms of outputs and input gradients
        from step 1."""
        folder = place / "results" / "known"
        cells = itertools.product(rules, ranks, lrs, seeds)
        for number, (scaling, rank, lr, seed) in enumerate(cells):
            cell = {"rank": rank, "lr": lr, "seed": seed, "gamma": ALPHA * rank ** -rules[scaling]}
            cell["scaling"] = scaling.split()[0]
            cell["exponent"] = rules[scaling] if cell["scaling"] == "power" else None
            name = (optimizer or {}).get("name", "sgd")
            about = {"cell_id": f"{name}{number:04x}", "model": "known"}
            about |= record_of(cell, config_of(cell, steps, optimizer or {})) | dict(record or {})
            writer = opened(folder / "cells" / about["cell_id"], "", about)
            at_end = {"step": steps, "tokens": 99, "eval_loss": final(cell), "lr": lr}
            metrics = [metrics_of(cell, step, lazy(cell)) for step in probed]
            writer.append("metrics", pd.DataFrame([*metrics, at_end]))
            rows = []
            for step in probed:
                rows += probes_of(cell, step, gradient, norm(cell, step))
                rows += outputs_of(cell, step, outputs or {}) if step else []
            writer.append("probes", pd.DataFrame(rows))
            end = status(cell)
            ended_at = STATUSES[end].ended_at
            writer.close(end, steps_done=steps, **({ended_at: 2} if ended_at else {}))
        return folder

    return write


def config_of(cell: Cell, steps: int, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: cell[name] for name in ("rank", "scaling", "exponent")}
    return CONFIG | {
        "adapter": CONFIG["adapter"] | own | {"alpha": ALPHA, "targets": "all-linear"},
        "optimizer": {"name": "sgd", "lr": cell["lr"], "weight_decay": 0.0, **optimizer},
        "train": CONFIG["train"] | {"steps": steps},
        "data": CONFIG["data"] | {"seed": cell["seed"]},
        "seed": cell["seed"],
        "results_dir": "results",
        "plots_dir": "plots",
    }


def record_of(cell: Cell, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "study": "known",
        "data": "pydoc",
        "gamma": cell["gamma"],
        "device": "cpu",
        "device_name": "a CPU",
        "config": config,
        "versions": {"torch": "2.13"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "sources": {"model": "f" * 64},
        "started": "2026-01-01T00:00:00",
        "finished": "2026-01-01T00:01:00",
        "seconds": 60.0,
    }


def descent_of(cell: Cell) -> float:
    """SGD's descent: gamma^2 r, times a factor of the seed."""
    return 1e-3 * cell["gamma"] ** 2 * cell["rank"] * (1 + 0.01 * cell["seed"])


def metrics_of(cell: Cell, step: int, lazy: float) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": 9,
        "clip_factor": 1.0,
        "loss": 2.0,
        "loss_after": 2.0 - lazy * descent_of(cell),
        "lr": cell["lr"],
        "eval_loss": 3.0 if step == 0 else math.nan,
    }


def flat_norm(cell: Cell) -> float:
    """gamma sqrt(r): flat under rsLoRA; times a factor of the seed."""
    return cell["gamma"] * cell["rank"] ** 0.5 * (1 + 0.01 * cell["seed"])


def probes_of(cell: Cell, step: int, gradient: float, norm: float) -> list[dict[str, Any]]:
    at = {"step": step, "batch": TRAIN}
    whole = at | {"layer": MODEL_WIDE, "block": -1, "kind": MODEL_WIDE}
    rows = [
        whole | {"site": "adapter_grad", "norm": norm},
        whole | {"site": "adapter_update", "descent": descent_of(cell)},
    ]
    for layer in LAYERS:
        where = {"layer": layer, "block": 0, "kind": layer.rpartition(".")[2]}
        shape = {"d_in": 64, "d_out": 32}
        rows.append(at | where | shape | {"site": "B_grad", "rms": gradient * cell["gamma"]})
    return rows


def outputs_of(cell: Cell, step: int, outputs: Mapping[str, OfCellAndStep]) -> list[dict[str, Any]]:
    """The rms of both conditions in every layer, on each batch."""
    return [
        {"step": step, "batch": batch, "layer": layer, "block": 0, "site": site}
        | {"kind": layer.rpartition(".")[2], "rms": (1 + n) * value(cell, step)}
        for batch, value in outputs.items()
        for site in ("adapter_out", "adapter_in_grad")
        for n, layer in enumerate(LAYERS)
    ]


def final_loss(lr: float) -> float:
    """A parabola in log lr with its minimum at 1e-3."""
    return 2.5 + 0.1 * (math.log(lr) - math.log(1e-3)) ** 2


def report_on(folder: Path) -> str:
    """The report of a study, in Markdown."""
    found = report_of("known", load_tables(folder), load_records(folder))
    return as_markdown(found, folder, folder)
