"""The ``cells`` table: a column for every key that is part of a cell's identity."""

import math
from dataclasses import asdict, replace

from study.config import Sources, identity
from study.store import cell_row
from study.store.tables import FIRST

SOURCES = Sources(model="a" * 64 + "+nf4", tokenizer="b" * 64, data="c" * 64)


def record(config):
    about = {"cell_id": "x", "study": "s", "model": "tiny", "data": "d", "gamma": 1.0}
    return {**about, "status": "running", "config": asdict(config), "sources": asdict(SOURCES)}


OTHERS = {
    "adapter.scaling": "lora2",
    "adapter.targets": ["q_proj", "v_proj"],
    "probes.sites": ["A"],
    "probes.stats": ["norm"],
    "probes.batch": "heldout",
    "probes.truncations": [1],
    "train.eval_every": 1,
    "train.warmup": 1,
}
"""Other values of keys whose type says too little about them."""
NOT_COMPARED = ("model.", "probes.steps", "optimizer.name", "data.")
"""The record has a column for them, or its sources do. ``probes.steps`` counts with ``every``."""


def changed(config, key, value):
    """``config`` with another value of a key than ``value``."""
    other = OTHERS.get(key)
    if other is None:
        is_text = isinstance(value, str | list)
        other = [0.8, 0.9] if isinstance(value, list) else "other" if is_text else (value or 0) + 1
    group, _, word = key.rpartition(".")
    if not group:
        return replace(config, **{word: other})
    return replace(config, **{group: replace(getattr(config, group), **{word: other})})


def test_a_key_is_a_column_if_and_only_if_it_is_part_of_the_identity(cell):
    config = cell("adapter.rank=8", "probes.steps=null", "probes.every=1")
    id_, row = identity(config, SOURCES), repr(cell_row(record(config)))
    values = {}
    for name, value in asdict(config).items():
        inner = value.items() if isinstance(value, dict) else ()
        values |= {f"{name}.{word}": part for word, part in inner} or {name: value}
    wrong = []
    for key, value in values.items():
        if key.startswith(NOT_COMPARED) and key not in ("data.seed", "data.heldout"):
            continue
        other = changed(config, key, value)
        moves_identity = identity(other, SOURCES) != id_
        if (repr(cell_row(record(other))) != row) != moves_identity:
            wrong.append(key)
    assert wrong == []


def test_names_of_columns(cell):
    row = cell_row(record(cell("optimizer=rmsprop", "optimizer.alpha=0.9", "probes.steps=[0,2]")))
    assert list(row)[: len(FIRST)] == list(FIRST)
    assert (row["alpha"], row["optimizer_alpha"], row["heldout"]) == (16.0, 0.9, 6)
    assert (row["probes_steps"], row["optimizer"]) == ("0,2", "rmsprop")
    hashes = [row[f"{name}_sha256"] for name in ("model", "tokenizer", "data")]
    assert hashes == ["a" * 12, "b" * 12, "c" * 12], "without the bits: model.quant_bits has them"
    assert math.isnan(row["clip"])
    assert math.isnan(row["momentum"])
    # Those of a Trainer are hashes of names and settings, and differ with the rank.
    of_trainer = cell_row(record(cell()) | {"peft": {"r": 8}})
    assert not any(name.endswith("_sha256") for name in of_trainer)


def test_full_fine_tuning_has_no_gamma(cell):
    assert math.isnan(cell_row(record(cell("adapter.rank=full")))["gamma"])
    assert cell_row(record(cell("adapter.rank=8")))["gamma"] == 1.0
