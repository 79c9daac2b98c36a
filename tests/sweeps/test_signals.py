"""Sweeps in processes of their own: signals stop them, and they share the cells that both train."""

import multiprocessing
import os
import re
import shlex
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from study.store import claim, is_claimed, load_cells, load_records
from study.sweeps import run as sweep
from study.sweeps import signals
from study.sweeps.cells import plan
from tests.faults.compare import differences
from tests.forked import STUDY, Forked, wait_for

LINE = (
    *("train", "-m", "model=tiny", "train.batch_size=2", "data=file", "data.sequence_length=32"),
    *("data.heldout=2", "probes.steps=null", "probes.every=7", "adapter.contraction=factored"),
    *("adapter.dropout=0.1", "train.steps=60", "checkpoint.every=1h"),
)
FORK = multiprocessing.get_context("fork")
STOPPING = "study: finishing this step, then stopping; press Ctrl-C again to stop at once"


@pytest.fixture
def begin(tmp_path):
    """``begin("train", ..., first=code, last=more)`` starts ``study`` in ``tmp_path``, after
    ``code``. ``more`` runs if it ends with 0."""
    begun = []

    def start(*arguments, first="", last="", folder=tmp_path):
        begun.append(Forked(f"{first}\n{STUDY}\n{last}", arguments, folder, os.environ))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()


@pytest.fixture
def line(jsonl):
    return [*LINE, f"data.path={jsonl}", "adapter.rank=2,3"]


def rows(folder):
    """About how many rows are on disk."""
    return sum(path.stat().st_size for path in folder.rglob("metrics.arrows")) // 400


def hang():
    """Python calls a signal's handler between two calls, so no call is long."""
    while True:
        time.sleep(0.01)


def check_stopped(process, line):
    last = process.said.splitlines()[-1]
    assert last == f"study: stopped; continue with: {shlex.join(['study', *line])}"
    assert "Traceback" not in process.said


def test_a_stopped_sweep_continues_to_the_tables_of_an_undisturbed_one(begin, line, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = begin(*line, folder=tmp_path / "whole")
    study_dir = tmp_path / "results/default"
    line = [*line, "pack.fold=1"]  # each cell stops and continues by itself
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        before = rows(study_dir)
        process = begin(*line)
        wait_for(lambda before=before, p=process: rows(study_dir) > before + 3 or p.ended)
        process.send(signum)
        assert process.wait().returncode == 128 + signum, process.said
        assert STOPPING in process.said
        check_stopped(process, line)
        assert "interrupted" in set(load_cells(study_dir)["status"])
        assert not list(study_dir.glob("sweep-*"))
    last = begin(*line)
    assert [last.wait().returncode, whole.wait().returncode] == [0, 0]
    assert differences(study_dir, tmp_path / "whole/results/default") == []
    resumed = [each for record in load_records(study_dir) for each in record.get("resumed", [])]
    assert len(resumed) == 3
    assert all(each["step"] > 0 for each in resumed)
    said = re.search(r"2 cells, \d done, 1 cell to continue from step (\d+) on", last.said)
    assert said, last.said
    assert int(said[1]) in {each["step"] for each in resumed}


def slow_to_load():
    """Called in the process of a sweep, whose working directory is the test's."""

    def wait(*_):
        Path("hangs").touch()
        hang()

    sweep.load_base = wait


def hang_in_a_step():
    real = sweep.train

    def train(*arguments):
        for number, results in enumerate(real(*arguments)):
            if number == 5:
                Path("hangs").touch()
                hang()
            yield results

    sweep.train = train


def test_a_signal_before_training_ends_the_process_at_once(begin, line, tmp_path):
    process = begin(*line, first=f"from {__name__} import slow_to_load; slow_to_load()")
    process.wait_for((tmp_path / "hangs").exists)
    process.send(signal.SIGTERM)
    assert process.wait().returncode == 143
    check_stopped(process, line)


def test_a_second_signal_stops_at_once_and_the_earlier_checkpoint_is_kept(begin, line, tmp_path):
    line = [*line, "checkpoint.every=2", "pack.fold=1"]
    process = begin(*line, first=f"from {__name__} import hang_in_a_step; hang_in_a_step()")
    process.wait_for((tmp_path / "hangs").exists)
    process.send(signal.SIGINT)
    process.send(signal.SIGTERM)  # at once: a terminal and a launcher may both ask for one stop
    process.wait_for(lambda: STOPPING in process.said)
    time.sleep(0.7)
    assert not process.ended
    process.send(signal.SIGINT)
    assert process.wait().returncode == 130
    check_stopped(process, line)
    assert len(list(tmp_path.rglob("checkpoints/*.safetensors"))) == 2


def test_stopping_stops_the_processes_of_a_launcher(begin, line, tmp_path):
    """``kill PID`` reaches the sweep's own process only. Its workers stop after their step."""
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "pack.max_cells=1")
    line = [*line, "adapter.rank=2,3,4", "train.steps=5000"]
    process = begin(*line, *joblib)
    study_dir = tmp_path / "results/default"
    process.wait_for(lambda: len(list(study_dir.rglob("metrics.arrows"))) == 2)
    process.send(signal.SIGTERM)
    assert process.wait().returncode == 143, process.said
    check_stopped(process, [*line, *joblib])
    cells = load_cells(study_dir)
    assert set(cells["status"]) == {"interrupted"}
    assert len(cells) == 2, "the pack that waited did not begin"
    assert len(list(study_dir.rglob("checkpoints/*.safetensors"))) == 2
    assert not list(study_dir.glob("sweep-*"))


# A launcher's own handler, as submitit's.


@pytest.mark.parametrize("ends", [True, False], ids=["requeues", "goes on"])
def test_the_handler_of_a_launcher_is_called_after_a_checkpoint(cell, tmp_path, ends):
    [planned] = plan([cell(f"results_dir={tmp_path}", "train.steps=30", "checkpoint.every=null")])
    job = FORK.Process(target=_be_a_job, args=(planned, tmp_path / "found", ends))
    job.start()
    job.join()
    assert job.exitcode == (144 if ends else 0)
    assert (tmp_path / "found").read_text() == "1 checkpoint, held: True"
    status = load_cells(tmp_path / "default")["status"].item()
    assert status == ("interrupted" if ends else "complete")


def _be_a_job(planned, found, ends):
    def handler(signum, frame):
        number = len(list(planned.folder.glob("checkpoints/*.safetensors")))
        found.write_text(f"{number} checkpoint, held: {is_claimed(planned.folder)}")
        if ends:
            raise SystemExit(144)

    signal.signal(signal.SIGUSR2, handler)
    signals.listen_in_worker()
    real = sweep.train

    def train(*arguments):
        for number, results in enumerate(real(*arguments)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGUSR2)
            yield results

    sweep.train = train
    assert not sweep.train_pack([planned], sweep.Worker()).failures


def test_ctrl_c_in_another_command_gives_one_line(study_cli, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("study.sweeps.progress.load_status", interrupted)
    ran = study_cli("status", str(tmp_path))
    assert (ran.code, ran.err.strip()) == (130, "study: interrupted")


# Processes that train the same cells share them: each is trained once, and all end with 0.


@pytest.fixture
def small(jsonl):
    return [*LINE, f"data.path={jsonl}", "train.steps=10", "optimizer.lr=1e-2", "pack.fold=1"]


def trained(said):
    return len(re.findall(r"complete in [\d.]+ s", said))


STATES = """
from study.store import load_cells
cells = load_cells("results/default")
print(*cells.loc[cells["rank"].isin({ranks}), "status"])
"""


def test_sweeps_that_share_cells_train_every_cell_once(begin, small, tmp_path):
    """None ends while a cell of its own runs, in whichever process."""
    asked = [([2, 3, 4], ()), ([2, 3, 4], ()), ([3, 4, 5], ("pack.max_cells=1",))]
    sweeps = []
    for ranks, more in asked:
        words = [f"adapter.rank={','.join(map(str, ranks))}", "seed=0,1", *more]
        sweeps.append(begin(*small, *words, last=STATES.format(ranks=ranks)))
    ended = [process.wait() for process in sweeps]
    assert [run.returncode for run in ended] == [0, 0, 0], sweeps[0].said
    assert [run.stdout.split() for run in ended] == [["complete"] * 6] * 3
    assert sum(trained(process.said) for process in sweeps) == 8
    folds = Counter(record["fold"] for record in load_records(tmp_path / "results/default"))
    assert set(folds.values()) == {1}
    assert set(load_cells(tmp_path / "results/default")["status"]) == {"complete"}
    assert not (tmp_path / "results/default/aside").exists()


def _hold(folder):
    claimed = claim(folder)
    time.sleep(6000)
    assert claimed


@pytest.mark.parametrize("stops", [False, True])
def test_a_sweep_waits_for_a_cell_that_another_process_trains(begin, small, tmp_path, cell, stops):
    """It trains the other cell first. A signal ends the wait at once."""
    first, _ = plan([cell(*small[2:], f"adapter.rank={rank}") for rank in (2, 3)])
    folder = tmp_path / "results/default/cells" / first.id
    other = FORK.Process(target=_hold, args=[folder])
    other.start()
    wait_for(lambda: is_claimed(folder))
    process = begin(*small, "adapter.rank=2,3")
    process.wait_for(lambda: "waiting for" in process.said)
    assert "study: waiting for 1 cell that another process trains\n" in process.said
    assert trained(process.said) == 1
    assert not process.ended
    if stops:
        process.send(signal.SIGTERM)
        assert process.wait().returncode == 143
        check_stopped(process, [*small, "adapter.rank=2,3"])
    other.kill()
    other.join()
    if not stops:
        assert process.wait().returncode == 0
        assert trained(process.said) == 2
