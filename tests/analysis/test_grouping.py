"""Curves are separated by whatever differs between their cells, and labels name it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.analysis import analyze
from study.analysis.summary import summary
from study.store import CellWriter, load_measured

ADAMW = {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8}
RMSPROP = {"name": "rmsprop", "alpha": 0.99, "eps": 1e-8}
DATA = "1a2b3c4d5e6f" + "0" * 52

SWEEPS = {
    "betas": ({"optimizer": ADAMW}, {"optimizer": ADAMW | {"betas": [0.8, 0.999]}}),
    "optimizer_alpha": ({"optimizer": RMSPROP}, {"optimizer": RMSPROP | {"alpha": 0.9}}),
    "data_sha256": ({}, {"data": "f0e1d2c3b4a5" + "0" * 52}),
}
VALUES = {
    "betas": ("0.9,0.999", "0.8,0.999"),
    "optimizer_alpha": ("0.99", "0.9"),
    "data_sha256": ("1a2b3c4d5e6f", "f0e1d2c3b4a5"),
}
SLOPES = (-0.5, -0.25)


def write_cell(
    folder: Path, number: int, slope: float, rank: int, seed: int, what: Mapping[str, Any]
) -> None:
    """A cell whose gradient norm is ``rank ** slope`` times a factor of its seed."""
    optimizer = {"lr": 1e-3, "weight_decay": 0.0, "loraplus_lr_ratio": 1.0}
    config = {
        "seed": seed,
        "precision": "float32",
        "adapter": {"rank": rank, "alpha": 16.0, "scaling": "rslora", "exponent": None}
        | {"targets": "all-linear", "init": "kaiming", "dropout": 0.0},
        "data": {"name": "jsonl", "seed": seed, "sequence_length": 48, "heldout": 6},
        "optimizer": optimizer | copy.deepcopy(what.get("optimizer", ADAMW)),
        "train": {"steps": 1, "batch_size": 2, "accumulation": 1, "clip": None}
        | {"schedule": "constant", "warmup": 0},
        "probes": {"every": 1, "steps": None, "stats": ["norm"], "tokens": 128},
    }
    cell_id = f"{number:012x}"
    record = {"cell_id": cell_id, "study": folder.name, "model": "tiny", "data": "train.jsonl"}
    record |= {"gamma": 16 * rank**-0.5, "device": "cpu", "config": config}
    record |= {"sources": {"model": "m" * 64, "data": what.get("data", DATA)}}
    record |= {"started": "2026-01-01T00:00:00", "finished": "2026-01-01T00:01:00"}
    writer = CellWriter.open(folder / "cells" / cell_id, "", record)
    norm = rank**slope * (1 + 0.01 * seed)
    where = {"layer": "model", "block": -1, "kind": "model", "site": "adapter_grad"}
    row = {"step": 0, **where, "batch": "train", "norm": norm}
    writer.append("probes", pd.DataFrame([row]))
    writer.append("metrics", pd.DataFrame([{"step": 0, "tokens": 9, "loss": 2.0}]))
    writer.close("complete", steps_done=0, seconds=1.0)


def write_sweeps(folder: Path, *sweeps: Mapping[str, Any]) -> None:
    """Sweeps over rank and seed, the first with exponent -0.5 and the second with -0.25."""
    number = 0
    for slope, what in zip(SLOPES, sweeps, strict=True):
        for rank in (4, 16, 64):
            for seed in (0, 1, 2):
                write_cell(folder, number, slope, rank, seed, what)
                number += 1


@pytest.mark.parametrize("column", SWEEPS)
def test_sweeps_that_differ_in_one_key_are_two_curves(column: str, tmp_path: Path) -> None:
    folder = tmp_path / "results/known"
    write_sweeps(folder, *SWEEPS[column])
    raw = load_measured(folder)
    found = analyze(raw.cells, raw.metrics, raw.probes).exponents
    slopes = {str(row[column]): row["exponent"] for _, row in found.iterrows()}
    assert slopes == pytest.approx(dict(zip(VALUES[column], SLOPES, strict=True)))
    assert set(summary(found)["curve"]) == {f"{column}={value}" for value in VALUES[column]}


def test_labels_omit_what_the_optimizer_or_the_name_implies(tmp_path: Path) -> None:
    """Two optimizers, each with one setting: eps, betas and alpha differ, and labels name none."""
    folder = tmp_path / "results/known"
    write_sweeps(folder, {"optimizer": ADAMW}, {"optimizer": RMSPROP})
    raw = load_measured(folder)
    found = analyze(raw.cells, raw.metrics, raw.probes)
    assert set(summary(found.exponents)["curve"]) == {""}
