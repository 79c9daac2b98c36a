"""A small results folder as somebody else might send it, with any text in any field."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from study.store import CellWriter
from study.vocabulary.quantities import MODEL_WIDE, TRAIN

P = {"lora": 1.0, "rslora": 0.5}
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")

TEXTS = ("model", "model_note", "data", "device", "device_name", "started", "finished", "fold")
OF_CONFIG = ("adapter.targets", "adapter.init", "train.schedule", "optimizer.name", "precision")


def write_study(folder: Path, layers: tuple[str, ...] = LAYERS) -> Path:
    """A study of two rules at two ranks; one of its cells failed."""
    for number, (scaling, rank) in enumerate((s, r) for s in P for r in (4, 16)):
        cell_id = f"{number:012x}"
        writer = CellWriter.open(folder / "cells" / cell_id, "", _record(cell_id, scaling, rank))
        for step in (0, 1):
            size = (number + 1) * (step + 1)
            writer.append("metrics", pd.DataFrame([_metrics(step, 2.0 - 0.1 * size)]))
            writer.append("probes", pd.DataFrame(_probes(step, size, layers)))
        error = {"error": "OutOfMemoryError: none left"} if number == 3 else {}
        writer.close("failed" if error else "complete", steps_done=1, seconds=1.0, **error)
    return folder


def with_texts(study: Path, folder: Path, text: str) -> Path:
    """A copy of ``study`` with ``text`` in every free text of every record."""
    shutil.copytree(study, folder)
    for path in folder.glob("cells/*/record.json"):
        record: dict[str, Any] = json.loads(path.read_text())
        record |= dict.fromkeys(TEXTS, text)
        record["git"] = {"commit": text, "dirty": True}
        record["versions"] = {"torch": text, text: "1"}
        record["sources"] = dict.fromkeys(record["sources"], text)
        if "error" in record:
            record["error"] = text
        for key in OF_CONFIG:
            _set(record["config"], key, text)
        record["config"]["other"] = text
        # Two values, so that it is a part of the name of each curve.
        record["config"]["train"]["mode"] = f"{text}{record['config']['adapter']['scaling']}"
        path.write_text(json.dumps(record))
    return folder


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    group, _, name = key.rpartition(".")
    (config[group] if group else config)[name] = value


def _record(cell_id: str, scaling: str, rank: int) -> dict[str, Any]:
    return {
        "cell_id": cell_id,
        "study": "known",
        "model": "known",
        "data": "pydoc",
        "gamma": 16 * rank ** -P[scaling],
        "device": "cpu",
        "device_name": "a CPU",
        "started": "2026-01-01T00:00:00",
        "finished": "2026-01-01T00:01:00",
        "sources": {"model": "f" * 64, "data": "e" * 64},
        "versions": {"torch": "2.13"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "config": _config(scaling, rank),
    }


def _config(scaling: str, rank: int) -> dict[str, Any]:
    adapter: Mapping[str, Any] = {"rank": rank, "scaling": scaling, "exponent": None}
    train: Mapping[str, Any] = {"steps": 2, "batch_size": 2, "accumulation": 1, "clip": None}
    return {
        "adapter": {
            **adapter,
            "alpha": 16.0,
            "init": "kaiming",
            "dropout": 0.0,
            "targets": "all-linear",
        },
        "optimizer": {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0},
        "train": {**train, "schedule": "constant", "warmup": 0},
        "data": {"seed": 0, "sequence_length": 48},
        "seed": 0,
        "precision": "float32",
    }


def _metrics(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "tokens": 9 * step, "loss": loss, "eval_loss": loss, "lr": 1e-3}


def _probes(step: int, size: float, layers: tuple[str, ...]) -> list[dict[str, Any]]:
    at = {"step": step, "batch": TRAIN, "nonfinite": 0.0}
    whole = at | {"layer": MODEL_WIDE, "block": -1, "kind": MODEL_WIDE}
    rows = [whole | {"site": "adapter_grad", "norm": size}]
    for block, layer in enumerate(layers):
        of_layer = {"layer": layer, "block": block, "kind": layer.rpartition(".")[2]}
        rows.append(
            at | of_layer | {"site": "adapter_out", "rms": size, "norm": size, "mean_abs": size}
        )
    return rows
