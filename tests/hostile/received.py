"""A small results folder as somebody else might send it, with any text in any field."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from study.store import CellWriter
from study.vocabulary.quantities import MODEL_WIDE, TRAIN

P = {"lora": 1.0, "rslora": 0.5}
LAYER = "model.layers.0.self_attn.q_proj"
TEXTS = ("model", "model_note", "data", "device", "device_name", "started", "finished", "fold")
OF_CONFIG = ("adapter.targets", "adapter.init", "train.schedule", "optimizer.name", "precision")
CONFIG: dict[str, Any] = {
    "adapter": {"alpha": 16.0, "exponent": None, "init": "kaiming", "targets": "all-linear"},
    "optimizer": {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0},
    "train": {"steps": 2, "batch_size": 2, "accumulation": 1, "clip": None, "warmup": 0},
    "data": {"seed": 0, "sequence_length": 48},
    "seed": 0,
    "precision": "float32",
}
RECORD: dict[str, Any] = {
    "study": "known",
    "model": "known",
    "data": "pydoc",
    "device": "cpu",
    "sources": {"model": "f" * 64, "data": "e" * 64},
}


def write_study(folder: Path) -> Path:
    """A study of two rules at two ranks; one of its cells failed."""
    for number, (scaling, rank) in enumerate(itertools.product(P, (4, 16))):
        adapter = {**CONFIG["adapter"], "rank": rank, "scaling": scaling, "dropout": 0.0}
        record = {"cell_id": f"{number:012x}", "gamma": 16 * rank ** -P[scaling]}
        record |= {**RECORD, "config": CONFIG | {"adapter": adapter}}
        writer = CellWriter.open(folder / "cells" / record["cell_id"], "", record)
        for step in (0, 1):
            size = (number + 1) * (step + 1)
            metrics = {"step": step, "tokens": 9, "loss": 2 - 0.1 * size, "eval_loss": 2.0}
            writer.append("metrics", pd.DataFrame([metrics | {"lr": 1e-3}]))
            row = {"step": step, "batch": TRAIN, "nonfinite": 0.0, "norm": size, "rms": size}
            whole = {"layer": MODEL_WIDE, "block": -1, "kind": MODEL_WIDE, "site": "adapter_grad"}
            layer = {"layer": LAYER, "block": 0, "kind": "q_proj", "site": "adapter_out"}
            writer.append("probes", pd.DataFrame([row | whole, row | layer]))
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
            group, _, name = key.rpartition(".")
            (record["config"][group] if group else record["config"])[name] = text
        record["config"]["other"] = text
        # Two values, so that it is a part of the name of each curve.
        record["config"]["train"]["mode"] = f"{text}{record['config']['adapter']['scaling']}"
        path.write_text(json.dumps(record))
    return folder
