"""Cells continue from their checkpoints; folds that fail are halved."""

import errno
from types import SimpleNamespace

import pytest
import torch

from study.errors import StudyError
from study.store import StorageError, is_claimed, load_cells, load_measured, load_records
from study.sweeps import record
from study.sweeps import run as sweep
from study.sweeps.cells import plan


@pytest.fixture
def cells(cell, tmp_path):
    """``cells("results", ...)``: three ranks, with a checkpoint after each step."""

    def of(folder, *overrides, ranks=(2, 3, 4)):
        common = (f"results_dir={tmp_path / folder}", "train.steps=8", "checkpoint.every=1")
        return plan([cell(*common, *overrides, f"adapter.rank={rank}") for rank in ranks])

    return of


@pytest.fixture
def hook(monkeypatch):
    """``hook(act)`` calls ``act(fold, step)`` after each step. Returns the sizes of the folds."""
    real = sweep.train

    def of(act):
        sizes = []

        def train(base, corpus, cells, *more):
            sizes.append(len(cells))
            for results in real(base, corpus, cells, *more):
                yield results
                act(cells, next(each for each in results if each).step)

        monkeypatch.setattr(sweep, "train", train)
        return sizes

    return of


def test_cells_that_stopped_at_different_steps_continue_one_by_one(cells, hook, tmp_path):
    """The first has failed, and the disk was full under the others."""
    sweep.run(cells("whole"))
    study_dir, planned = tmp_path / "results/default", cells("results", "pack.fold=3")
    failure = RuntimeError("the driver was restarted")
    full_disk = StorageError("can't write a file: No space left on device; free some space")
    full_disk.errno = errno.ENOSPC
    for one, stop, error in zip(planned, (2, 4, 4), (failure, full_disk, full_disk), strict=True):

        def act(_, step, stop=stop, error=error):
            if step == stop:
                raise error

        hook(act)
        with pytest.raises(StudyError):
            sweep.run([one])
    assert load_cells(study_dir).set_index("rank")["status"][2] == "failed"
    sizes = hook(lambda fold, step: None)
    sweep.run(planned)
    assert sizes == [1, 2], "those at one step go on together"
    one, two = (load_measured(tmp_path / folder / "default") for folder in ("whole", "results"))
    losses = list(one.metrics["loss"])
    assert losses == pytest.approx(list(two.metrics["loss"]), nan_ok=True, rel=1e-5)
    assert set(two.cells["status"]) == {"complete"}
    resumed = [[each["step"] for each in record["resumed"]] for record in load_records(study_dir)]
    assert sorted(resumed) == [[3], [5], [5]]
    assert not list(study_dir.rglob("checkpoints"))
    [aside] = (study_dir / "aside").iterdir()
    assert '"status": "failed"' in (aside / "record.json").read_text()


def test_a_disk_that_is_full_when_a_second_cell_begins_releases_the_first(cells, monkeypatch):
    real, planned, opened = record.CellWriter, cells("results", "pack.fold=3"), []

    def writer(*given):
        if opened:
            raise StorageError("No space left on device")
        opened.append(real(*given))
        return opened[0]

    monkeypatch.setattr(record, "CellWriter", writer)
    with pytest.raises(StorageError, match="No space"):
        sweep.run(planned)
    assert not is_claimed(planned[0].folder)
    assert opened[0].record["status"] == "interrupted"


# When checkpoints are written.


@pytest.mark.parametrize(
    ("every", "cost", "expected"),
    [
        ("3", 0, [3, 6]),
        ("20s", 5, [1, 6]),  # one that takes 5 s is followed by 100 s without one
        ("null", 0, []),
    ],
)
def test_checkpoints_are_written_when_they_are_due(every, cost, expected, cells, monkeypatch):
    """A step takes 20 s. No checkpoint follows the last step. The newest two are kept."""
    clock, written, kept = [0.0], [], []
    real_save, real_add = record.save, record.Recorder.add

    def save(folder, checkpoint, sync):
        clock[0] += cost
        written.append(checkpoint.step)
        path = real_save(folder, checkpoint, sync)
        kept.append(len(list(path.parent.glob("*.safetensors"))))

    def add(self, results):
        clock[0] += 20
        real_add(self, results)

    monkeypatch.setattr(record, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(record, "save", save)
    monkeypatch.setattr(record.Recorder, "add", add)
    sweep.run(cells("results", f"checkpoint.every={every}", ranks=(2,)))
    assert written == expected
    assert max(kept, default=0) <= 2


# Memory.


def test_a_fold_that_runs_out_of_memory_is_halved_and_goes_on(cells, hook, tmp_path, capsys):
    """Rank 5 fails alone, with an error of the allocator of CPUs."""

    def act(fold, step):
        if len(fold) == 4 and step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fold[-1].adapter.rank == 5 and len(fold) < 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")

    sizes = hook(act)
    with pytest.raises(StudyError, match="1 of 4 cells failed"):
        sweep.run(cells("results", "pack.fold=4", ranks=(2, 3, 4, 5)))
    assert sizes == [4, 2, 2, 1, 1], "halves, in the order of the cells"
    tables = load_measured(tmp_path / "results/default")
    assert list(tables.cells.sort_values("rank")["status"]) == ["complete"] * 3 + ["failed"]
    folds = [each["fold"] for each in load_records(tmp_path / "results/default")]
    assert sorted(folds.count(fold) for fold in set(folds)) == [1, 1, 2]
    said = capsys.readouterr().err
    assert "4 cells in a fold: OutOfMemoryError: CUDA out of memory; retrying 2" in said
    assert "2 cells in a fold: RuntimeError: DefaultCPUAllocator" in said
