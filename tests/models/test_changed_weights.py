"""Weights that change on disk: no cell trains on other weights than its id stands for."""

import os

import pytest

from study.store import load_measured
from tests.forked import Forked

DESCRIBE = (
    "import sys; from study.config import ModelConfig; from study.models import describe; "
    "describe(ModelConfig('hf', sys.argv[1]))"
)


@pytest.fixture
def train(study_cli, tiny_folder, jsonl, here):
    """``train(name)`` trains one cell on the model in ``tiny_folder``."""
    words = ["model=hf", f"model.path={tiny_folder}", "data=file", f"data.path={jsonl}"]
    words += ["data.sequence_length=32", "data.heldout=2", "train.steps=2", "train.batch_size=2"]
    return lambda name: study_cli("train", *words, f"name={name}")


def flip_a_bit(weights, byte):
    content = bytearray(weights.read_bytes())
    content[byte] ^= 1
    weights.write_bytes(content)


def test_bits_that_changed_at_equal_size_and_time_are_found_when_the_weights_load(
    train, tiny_folder, tmp_path
):
    weights = tiny_folder / "model.safetensors"
    hashing = Forked(DESCRIBE, [str(tiny_folder)], tiny_folder, os.environ).wait()
    assert hashing.returncode == 0, hashing.stderr
    stat = weights.stat()
    flip_a_bit(weights, -1)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    ran = train("changed")
    assert ran.code == 2
    assert "its files have changed: rerun the command" in ran.err
    assert not list(tmp_path.glob("results/changed/cells/*/metrics.parquet"))


def test_weights_replaced_while_a_process_lives_are_not_reused(train, tiny_folder):
    assert train("first").code == 0
    flip_a_bit(tiny_folder / "model.safetensors", -2)  # of the highest byte but one of a float
    assert train("second").code == 0
    first, second = (load_measured(f"results/{name}") for name in ("first", "second"))
    assert first.cells["cell_id"][0] != second.cells["cell_id"][0]
    assert first.metrics["loss"][0] != second.metrics["loss"][0]
