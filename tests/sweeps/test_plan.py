"""``--plan`` for this machine and ``--plan=h100``: what a sweep takes there."""

import json
import re

import pytest

from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, tiny

pytestmark = pytest.mark.usefixtures("here")


def test_a_sweep_is_planned_for_this_machine(works, jsonl, tmp_path):
    small = ("model=tiny", "data=file", f"data.path={jsonl}", "data.heldout=6", "train.epochs=0.5")
    ran = works("train", "-m", *small, "adapter.rank=4,8", "pack.memory_gb=2", "--plan")
    assert "study default: 2 cells, 0 done, 2 to train in 1 pack" in ran.err
    lines = ran.out.splitlines()
    rows = [line.split() for line in lines[1:3]]
    assert [row[:2] for row in rows] == [["4", "1"], ["8", "1"]]
    assert lines[3].startswith("2 of 2 cells fit one cpu: ")
    assert lines[4].startswith("1 fold of up to 2 cells in a forward pass, which takes up to 0.00")
    assert re.match(r"a process may use 2 GiB; measured: \d+ GFLOP/s in large float32 ", lines[5])
    assert "54 rows of data.format=" in lines[6]
    assert lines[7] == "train.epochs=0.5: 4 steps of 8 rows; train.steps is ignored"
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_priced_for_a_device_that_is_not_here(works, tmp_path):
    line = ("train", "-m", "model=shape", "preset=gpu", "adapter.rank=16,2048", "seed=0,1")
    ran = works(*line, "--plan=h100", "probes.stats=[rms]")
    rows = [text.split() for text in ran.out.splitlines()[1:3]]
    assert [row[:2] for row in rows] == [["16", "2"], ["2048", "2"]]
    assert 10 < float(rows[0][6]) < 79 < float(rows[1][6]), "GiB"
    for row in rows:  # seconds of a cell: its FLOPs over the assumed speed
        hours, minutes, seconds = map(int, row[7].split(":"))
        expected = float(row[2]) * 1e15 / (0.5 * 0.8 * 989e12)
        assert 3600 * hours + 60 * minutes + seconds == pytest.approx(expected, rel=0.01)
    assert "2 of 4 cells fit one h100: " in ran.out
    assert "others are too large: train.shard=true" in ran.out
    assert "assumed: NVIDIA H100" in ran.out
    assert not list(tmp_path.iterdir())


def test_a_config_json_is_a_shape(tmp_path):
    given = describe(ModelConfig("tiny"))
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    for path in (tmp_path, tmp_path / "config.json"):
        card = describe(ModelConfig("shape", str(path)))
        assert (card.linears, card.shapes, card.head) == (given.linears, given.shapes, given.head)
    for text, says in (('{"model_type": "nothing"}', "nothing"), ("{}", "has no model_type")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(StudyError, match=says):
            describe(ModelConfig("shape", str(tmp_path)))
    with pytest.raises(StudyError, match=r"is no shape: choose from llama-2-7b, "):
        describe(ModelConfig("shape", "llama-4"))


def test_a_batch_of_more_rows_than_the_data_is_refused(refused, short):
    line = refused("train", *short, "name=mine", "train.batch_size=1000000")
    assert "rows: give at most 60" in str(line)
