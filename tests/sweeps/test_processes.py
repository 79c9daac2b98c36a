"""``study train`` in the processes of torchrun: one writes and prints, all train, all end."""

import os
import signal
import sys

import numpy as np
import pandas as pd
import pytest

from study.errors import StudyError
from study.store import load_cells, load_measured, rows_of
from study.sweeps import processes, record, signals
from study.sweeps.cells import plan
from study.vocabulary.quantities import STATS
from tests.together import commands_together


@pytest.fixture
def torchrun(tmp_path, monkeypatch):
    """``torchrun("train", ...)``: the exit code of each process, and what it printed on stderr."""

    def start(*arguments, before=lambda _: None, size=2):
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        codes = commands_together(before, tmp_path, size)
        said = [(tmp_path / f"stderr-{number}").read_text() for number in range(size)]
        return list(zip(codes, said, strict=True))

    return start


@pytest.fixture
def small(jsonl, tmp_path):
    """Two processes can divide neither the batches nor the held-out ones evenly: one gets none."""
    line = f"train model=tiny data=file data.path={jsonl} data.sequence_length=48 data.heldout=7 "
    line += f"results_dir={tmp_path}/results name=small train.batch_size=3 train.steps=3 "
    line += "adapter.rank=2 adapter.contraction=factored optimizer.lr=1e-2 train.shard=true "
    return f"{line} probes.every=null probes.steps=[3] pack.fold=1".split()


def assert_same_numbers(folder, other):
    """In bf16, only losses and norms, and roughly."""
    tables = [load_measured(each) for each in (folder, other)]
    assert set(tables[0].cells["cell_id"]) == set(tables[1].cells["cell_id"])
    bf16 = set(tables[0].cells.set_index("cell_id").query("precision == 'bf16'").index)
    keys = ["cell_id", "step", "layer", "site", "batch"]
    metrics = [each.metrics.drop(columns="seconds").set_index(keys[:2]) for each in tables]
    for ids, rtol in ((bf16, 1e-2), (set(tables[0].cells["cell_id"]) - bf16, 1e-6)):
        one, two = (each.loc[sorted(ids)].sort_index() for each in metrics)
        pd.testing.assert_frame_equal(one, two, rtol=rtol, atol=rtol)
    one, two = (
        each.probes[~each.probes["cell_id"].isin(bf16)]
        .astype(dict.fromkeys([*keys[2:], "kind"], str))
        .set_index(keys)
        .sort_index()
        for each in tables
    )
    inverses = [1 / each.pop("r_parts") for each in (one, two)]  # may be near 0
    np.testing.assert_allclose(*inverses, rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=0)


def test_two_processes_have_the_numbers_of_one(torchrun, small, tmp_path):
    """Every statistic, with micro-batches, clipping and recomputed blocks."""
    sweep = [
        *(small[0], "-m", *small[1:], "optimizer=lion", "precision=float32,bf16", "train.steps=2"),
        *("probes.steps=[0,1]", "probes.batch=all", f"probes.stats=[{','.join(STATS)}]"),
        *("probes.tokens=20", "train.accumulation=2", "train.clip=0.05", "train.eval_every=1"),
    ]
    for size in (1, 2):
        checkpointing = f"train.checkpointing={size == 2}"
        ran = torchrun(*sweep, f"name=of{size}", checkpointing, size=size)
        assert [code for code, _ in ran] == [0] * size, ran
    assert_same_numbers(tmp_path / "results/of2", tmp_path / "results/of1")


def test_a_sweep_and_its_continuation(torchrun, small, tmp_path):
    """One or two processes train a cell until a signal, and two or one end the sweep."""

    def stop_after_step_1(number):
        add = record.Recorder.add

        def added(self, results):
            add(self, results)
            if results[0].step == 1:
                signals.current().asked = 15

        if number == 0:
            record.Recorder.add = added

    sweep = [small[0], "-m", *small[1:], "adapter.rank=2,3"]
    torchrun(*sweep, "name=alone", size=1)
    for first in (1, 2):
        folder = tmp_path / "results" / f"begun_by_{first}"
        line = [*sweep, f"name={folder.name}"]
        leader, *others = torchrun(*line, before=stop_after_step_1, size=first)
        assert leader[0] == 128 + 15
        assert "study: stopped; continue with: study train -m" in leader[1]
        assert others == [(1, "")] * (first - 1)
        [begun] = load_cells(folder)["cell_id"]
        assert list(rows_of(folder / "cells" / begun, "metrics")["step"]) == [0, 1]

        leader, *others = torchrun(*line, size=3 - first)
        assert (leader[0], others) == (0, [(0, "")] * (2 - first)), leader[1]
        assert set(load_cells(folder)["status"]) == {"complete"}
        assert_same_numbers(folder, folder.with_name("alone"))


@pytest.mark.parametrize("killed", [False, True])
def test_a_process_that_fails_or_is_lost_leaves_a_cell_that_can_continue(
    torchrun, small, tmp_path, killed
):
    """One that fails prints why."""

    def end_at_step_1(number):
        train = processes.train

        def ending(*arguments, **world):
            for results in train(*arguments, **world):
                if results[0].step == 1:
                    if killed:
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise RuntimeError("no memory is left")
                yield results

        if number == 1:
            processes.train = ending

    leader, other = torchrun(*small, before=end_at_step_1)
    assert leader[0] == 2
    assert "torchrun has failed or was lost: rerun the command to resume" in leader[1]
    assert "Traceback" not in leader[1]
    if not killed:
        assert other == (1, "study: process 1 failed: RuntimeError: no memory is left\n")
    [status] = load_cells(tmp_path / "results" / "small")["status"]
    assert status == "interrupted"


def test_cells_that_these_processes_cannot_train(monkeypatch, cell):
    sharded = plan([cell("train.shard=true")])
    with pytest.raises(StudyError, match="start it with torchrun --nproc-per-node N -m study"):
        processes.check(sharded)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(StudyError, match="torchrun has started 3 processes"):
        processes.check(plan([cell()]))
    with pytest.raises(StudyError, match="maps 64 features to 64, which 3 processes can't divide"):
        processes.check(sharded)


REFUSED = ("optimizer=muon", "optimizer=adafactor", "adapter.dropout=0.1", "pack.compile=true")
REFUSED += ("adapter.contraction=merged", "model.quant_bits=8", "pack.fold=2")
REFUSED += ("train.answer_tokens=4", "train.example_losses=true", "probes.truncations=[1]")


def test_what_needs_whole_factors_is_refused(cell):
    for override in REFUSED:
        with pytest.raises(StudyError, match=r"train\.shard=true can't train with") as refused:
            cell("train.shard=true", override)
        assert override.partition("=[")[0] in str(refused.value)
    with pytest.raises(StudyError, match=r"train\.checkpointing=true and"):
        cell("train.checkpointing=true", "pack.compile=true")
