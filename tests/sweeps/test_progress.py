"""Other processes see a live sweep, its cells and its progress; ``study status`` shows them."""

import os
import re
import time
from datetime import UTC, datetime, timedelta

import pytest

from study.sweeps.progress import (
    WAITING,
    LiveSweep,
    live_sweeps,
    load_status,
    posted,
    remove_killed_sweeps,
)
from tests.forked import STUDY, Forked
from tests.store.small_cells import RECORD, append, opened


def planned(number):
    return [RECORD | {"cell_id": f"c{n}"} for n in range(number)]


def ago(seconds):
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def begin(study_dir, cell_id, steps, started=0.0):
    record = RECORD | {"cell_id": cell_id, "started": ago(started)}
    return append(opened(study_dir / "cells" / cell_id, "", record), range(steps))


def test_a_sweep_is_seen_while_it_lives(tmp_path):
    """A cell without a record is waiting, and so is a study without a cell. The file of a killed
    sweep is ignored and deleted."""
    pid = os.fork()
    if not pid:
        with posted({tmp_path: planned(1)}):
            os._exit(9)
    os.waitpid(pid, 0)
    [left] = tmp_path.glob("sweep-*.json")
    assert LiveSweep.read(left) is not None
    assert live_sweeps(tmp_path) == []
    with posted({tmp_path: planned(2)}):
        remove_killed_sweeps(tmp_path)
        assert not left.exists()
        assert list(load_status(tmp_path)["status"]) == [WAITING] * 2
        begin(tmp_path, "c0", 1).close("failed", steps_done=0, error="x")
        with posted({tmp_path: planned(1)}):
            assert len(live_sweeps(tmp_path)) == 2, "two sweeps of one study"
        [sweep] = live_sweeps(tmp_path)
        assert sweep.cells == planned(2)
        assert [record["status"] for record in sweep.records()] == ["failed", WAITING]
        assert list(load_status(tmp_path)["status"]) == ["failed", WAITING]
    assert live_sweeps(tmp_path) == []
    assert list(load_status(tmp_path)["status"]) == ["failed"]
    assert not list(tmp_path.glob("sweep-*"))


def test_the_time_left_is_that_of_the_work_left(tmp_path):
    """Of 12 steps, 6 were done in a minute: 6 take 60 s. A failed cell takes no more time.

    Ten minutes before the first cell, such as for a download, and its first steps say nothing.
    """
    sweep = LiveSweep(tmp_path, ago(660), planned(3))
    assert sweep.progress().seconds_left is None, "nothing was done"
    first = begin(tmp_path, "c0", 4, started=60)
    assert sweep.progress().left == "", "no time before a few steps"
    first.close("complete", steps_done=3)
    running = begin(tmp_path, "c1", 2, started=10)
    now = sweep.progress()
    assert now.states == {"complete": 1, "running": 1, WAITING: 1}
    assert now.work == pytest.approx(0.5)
    assert now.seconds_left == pytest.approx(60, rel=0.2)
    running.close("failed", steps_done=1)
    assert sweep.progress().seconds_left == pytest.approx(40, rel=0.2)


def test_a_watch_follows_a_sweep_to_its_end(tmp_path, short):
    """Beside a sweep of two packs in a process of its own."""
    sweep = ["train.steps=120", "adapter.rank=2,3", "pack.max_cells=1"]
    train_it = ["train", "-m", *short, *sweep]
    with Forked(STUDY, train_it, tmp_path, os.environ) as train:
        while not list((tmp_path / "results/default").glob("sweep-*.json")) and not train.ended:
            time.sleep(0.05)
        wide = os.environ | {"COLUMNS": "200"}  # a narrow terminal shows fewer cells
        watching = Forked(STUDY, ["status", "results/default", "--watch"], tmp_path, wide)
        looked, trained = watching.wait(), train.wait()
    assert (looked.returncode, trained.returncode) == (0, 0), looked.stderr + trained.stderr
    lines = looked.stdout.strip().splitlines()
    seen = [line for line in lines if re.match(r"\d\d:\d\d:\d\d  default: ", line)]
    assert any("2 waiting" in line or "1 waiting" in line for line in seen), "from the start"
    assert any(re.search(r"1 running.*rank [23] lora at step \d+/120", line) for line in seen), seen
    assert any(re.search(r"\d+%  0:\d\d:\d\d left", line) for line in seen), seen
    assert lines[-1] == "next: study report results/default"
    assert "default: 2 complete" in lines
    assert sum(line.startswith("complete ") for line in lines) == 2

    said = trained.stderr
    assert re.search(r"\[default\] 1 of 2 cells done  .* left  .*complete in [\d.]+ s\n", said)
    assert re.search(r"\[default\] 2 of 2 cells done  .*complete in [\d.]+ s\n", said)
    assert said.endswith("study default: 2 complete\nnext: study report results/default\n")
    assert not re.search(r"[\r\x1b]", said), "a log file is plain text"


def test_the_first_seed_gives_a_first_answer(short, works, here):
    said = works("train", "-m", *short, "adapter.rank=2,4", "seed=7,3").err.splitlines()
    [told] = [i for i, text in enumerate(said) if "first answer, of one seed (3)" in text]
    assert "LoRA" in said[told + 1]
    assert "Rank 4 against rank 2" in said[told + 1]
    assert sum("complete in" in text for text in said[told:]) == 2
