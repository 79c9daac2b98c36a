"""Weights that change on disk: no cell trains on other weights than its id stands for."""

import os

import pytest

from study.errors import StudyError
from study.store import load_measured
from study.sweeps.cells import plan
from study.sweeps.run import run


def change_a_bit(weights):
    """At equal size and time."""
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-2] ^= 1  # of the highest byte but one of a float
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def words(tiny_folder, tmp_path):
    return ["model=hf", f"model.path={tiny_folder}", f"results_dir={tmp_path}"]


def test_weights_that_changed_after_the_plan_are_not_trained(cell, words, tiny_folder):
    planned = plan([cell(*words)])
    change_a_bit(tiny_folder / "model.safetensors")
    with pytest.raises(StudyError, match="has other weights than when the sweep was planned"):
        run(planned)
    assert not planned[0].done


def test_weights_that_changed_give_another_cell(cell, words, tiny_folder, tmp_path):
    for name in ("first", "second"):
        run(plan([cell(*words, f"name={name}")]))
        change_a_bit(tiny_folder / "model.safetensors")
    first, second = (load_measured(tmp_path / name) for name in ("first", "second"))
    assert first.cells["cell_id"][0] != second.cells["cell_id"][0]
    assert first.metrics["loss"][0] != second.metrics["loss"][0]
