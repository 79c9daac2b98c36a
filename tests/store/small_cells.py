"""A small cell on disk that trains nothing."""

from pathlib import Path
from typing import Any

import pandas as pd

from study.store import CellWriter, claim

CONFIG: dict[str, Any] = {
    "adapter": {"rank": 8, "scaling": "power", "exponent": 0.7, "alpha": 16.0}
    | {"init": "kaiming", "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
    "optimizer": {"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.0},
    "train": {"steps": 3, "batch_size": 2, "accumulation": 1, "clip": None}
    | {"schedule": "constant", "warmup": 0},
    "data": {"seed": 0, "sequence_length": 48},
    "seed": 0,
    "precision": "float32",
}
RECORD: dict[str, Any] = {
    "cell_id": "abc",
    "study": "s",
    "model": "tiny",
    "data": "pydoc",
    "gamma": 0.5,
    "device": "cpu",
    "config": CONFIG,
    "sources": {"model": "00ff", "adapter": None},
}


def metrics(step: int) -> pd.DataFrame:
    return pd.DataFrame([{"step": step, "tokens": 10 * step, "loss": 1.5, "seconds": 0.1 * step}])


def probes(step: int) -> pd.DataFrame:
    row = {"step": step, "layer": f"l{step}", "block": 0, "kind": "q_proj", "site": "A"}
    row |= {"batch": "train", "norm": 2.0}
    return pd.DataFrame([row, row | {"layer": "other", "norm": float("inf")}])


def opened(folder: Path, *arguments: Any) -> CellWriter:
    claimed = claim(folder)
    return CellWriter(claimed, *arguments)


def append(writer: CellWriter, steps: range) -> CellWriter:
    for step in steps:
        writer.append("metrics", metrics(step))
        writer.append("probes", probes(step))
    return writer


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, at this share of its length."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 2
    path.write_bytes(content)


def complete(study_dir: Path, cell_id: str = "abc", record: dict[str, Any] = RECORD) -> Path:
    """The folder of a complete cell with one row."""
    folder = study_dir / "cells" / cell_id
    writer = opened(folder, "x: 1\n", record | {"cell_id": cell_id})
    append(writer, range(1)).close("complete", steps_done=0)
    return folder
