"""The ``cells`` table: a column for every key that is part of a cell's identity."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from study.config import CellConfig, Sources, identity
from study.config.expectations import Expectation
from study.store import cell_row
from study.store.cells import FIRST, NOT_COLUMNS

SOURCES = Sources(model="a" * 64 + "+nf4", tokenizer="b" * 64, data="c" * 64)
Build = Callable[..., CellConfig]


def record(config: CellConfig) -> dict[str, Any]:
    about = {"cell_id": "x", "study": "s", "model": "tiny", "data": "d", "gamma": 1.0}
    return {
        **about,
        "status": "running",
        "config": asdict(config),
        "sources": asdict(SOURCES),
    }


CHANGES = {
    "name": "other",
    "results_dir": "other",
    "plots_dir": "other",
    "device": "cuda",
    "precision": "bf16",
    "seed": 7,
    "data.sequence_length": 47,
    "data.heldout": 5,
    "data.seed": 7,
    "adapter.rank": 9,
    "adapter.alpha": 17.0,
    "adapter.scaling": "lora2",
    "adapter.exponent": 0.7,
    "adapter.targets": ["q_proj", "v_proj"],
    "adapter.init": "gaussian",
    "adapter.dropout": 0.1,
    "adapter.contraction": "merged",
    "adapter.path": "somewhere",
    "optimizer.lr": 0.5,
    "optimizer.weight_decay": 0.1,
    "optimizer.loraplus_lr_ratio": 2.0,
    "optimizer.betas": [0.8, 0.9],
    "optimizer.eps": 1e-6,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.accumulation": 2,
    "train.clip": 1.0,
    "train.schedule": "linear",
    "train.warmup": 1,
    "train.eval_every": 1,
    "train.save_adapter": True,
    "train.answer_tokens": 3,
    "probes.every": 2,
    "probes.sites": ["A"],
    "probes.stats": ["norm"],
    "probes.batch": "heldout",
    "probes.tokens": 64,
    "probes.truncations": [1],
    "pack.compile": True,
    "tracker.mode": "online",
    "expects": [
        Expectation(
            what="best_rate",
            predicted=0.0,
            tolerance=0.1,
            optimizer="sgd",
            source="a paper",
            refuted_by="a rate that moves",
        )
    ],
}


def with_value(config: CellConfig, key: str, value: Any) -> CellConfig:
    group, _, word = key.rpartition(".")
    if not group:
        return replace(config, **{word: value})
    return replace(config, **{group: replace(getattr(config, group), **{word: value})})


def test_a_key_is_a_column_if_and_only_if_it_is_part_of_the_identity(cell: Build) -> None:
    config = cell("adapter.rank=8", "probes.steps=null", "probes.every=1")
    id_, row = identity(config, SOURCES), repr(cell_row(record(config)))
    wrong = []
    for key, value in CHANGES.items():
        changed = with_value(config, key, value)
        moves_identity = identity(changed, SOURCES) != id_
        if (repr(cell_row(record(changed))) != row) != moves_identity:
            wrong.append(key)
    assert wrong == []


def test_every_key_is_changed_above(cell: Build) -> None:
    """``model`` and ``data`` by name and path stand in the record; ``probes.steps`` with every.

    ``train.epochs`` decides ``train.steps``. ``train.shard`` and ``train.checkpointing`` say where
    numbers are computed.
    """
    keys = set()
    for name, value in asdict(cell("adapter.rank=8")).items():
        keys |= {f"{name}.{word}" for word in value} if isinstance(value, dict) else {name}
    known = {*CHANGES, "optimizer.name", "probes.steps", "train.epochs"}
    known |= {"train.shard", "train.checkpointing"}
    known |= {"model.quant_bits", "model.width"}  # the model's fingerprint has them
    assert {
        key for key in keys - known if not key.startswith(("checkpoint.", "pack.", "tracker."))
    } == {key for key in NOT_COLUMNS if key.startswith(("model.", "data."))}


def test_names_of_columns(cell: Build) -> None:
    row = cell_row(record(cell("optimizer=rmsprop", "optimizer.alpha=0.9", "probes.steps=[0,2]")))
    assert list(row)[: len(FIRST)] == list(FIRST)
    assert (row["alpha"], row["optimizer_alpha"], row["heldout"]) == (16.0, 0.9, 6)
    assert (row["probes_steps"], row["optimizer"]) == ("0,2", "rmsprop")
    hashes = [row[f"{name}_sha256"] for name in ("model", "tokenizer", "data")]
    assert hashes == ["a" * 12, "b" * 12, "c" * 12], "without the bits: model.quant_bits has them"
    assert math.isnan(row["clip"])
    assert math.isnan(row["momentum"])


def test_a_trainers_sources_are_not_contents(cell: Build) -> None:
    """They are hashes of names and settings, and differ with the rank."""
    row = cell_row(record(cell()) | {"peft": {"r": 8}})
    assert not any(name.endswith("_sha256") for name in row)
