"""Checkpoints on disk: the newest two are kept, and damage is seen."""

import json
import tracemalloc

import numpy as np
import pytest

from study.store.checkpoints import Checkpoint, load_newest, save
from tests.store.small_cells import flip

TENSORS = {
    "weights/a/A": np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7),
    "weights/a/B": np.zeros((7, 5), np.float32),
    "dropout/a": np.arange(256, dtype=np.uint8),
}


def at(step, **changed):
    return Checkpoint(step, TENSORS | changed, {"tokens": 7})


def test_a_checkpoint_takes_no_memory_of_its_own(tmp_path):
    """At rank 2048 a copy of weights and states is 7.5 GB."""
    weights = np.zeros((4096, 1024), np.float32)
    tracemalloc.start()
    save(tmp_path, at(1, weights=weights))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weights.nbytes / 8


def pair(step):
    return [f"step-{step:08d}.json", f"step-{step:08d}.safetensors"]


def test_the_newest_two_are_kept_and_drafts_of_killed_processes_are_not(folder):
    save(folder, at(5))
    (folder / "checkpoints" / "step-00000006.safetensors.99.abc.partial").write_bytes(b"half")
    (folder / "checkpoints" / "step-00000007.safetensors").write_bytes(b"without its note")
    for step in (10, 15, 20):
        save(folder, at(step))
    assert {path.name for path in folder.glob("checkpoints/*")} == {*pair(15), *pair(20)}
    (folder / "checkpoints" / "step-00000020.json").write_text("{")
    assert load_newest(folder, lambda line: None).step == 15


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_damage_is_seen_and_the_one_before_is_used(folder, kind):
    save(folder, at(5))
    path = save(folder, at(10)).with_suffix(f".{kind}")
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in draw.random(40):
        path.write_bytes(whole[: int(place * len(whole))])
        if place < 0.9:
            path.write_bytes(whole)
            flip(path, place)
        said = []
        found = load_newest(folder, said.append)
        assert found.step == 5
        [line] = said
        assert line.startswith("cell abc: its checkpoint step-00000010.json can't be used (")
        assert "\n" not in line


@pytest.mark.parametrize("changed", [{"format": 3}, {"cell_id": "another"}, {"step": 9}])
def test_another_format_cell_or_step_is_refused(folder, changed):
    note = save(folder, at(10)).with_suffix(".json")
    note.write_text(json.dumps(json.loads(note.read_text()) | changed))
    said = []
    assert load_newest(folder, said.append) is None
    assert f"can't be used (ValueError: it has {changed})" in said[0]


def test_weights_that_are_not_finite_fall_back(folder):
    save(folder, at(5))
    save(folder, at(10, **{"weights/a/B": np.array([1.0, np.nan])}))
    said = []
    found = load_newest(folder, said.append)
    assert found.step == 5
    assert "weights/a/B is not finite" in said[0]
