"""Derived tables and figures are made again if, and only if, cells, distances or code changed."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from click.testing import CliRunner

import study
from study.cli import cli
from study.figures import FIGURES
from study.report import current_tables, write_report
from study.store import CellWriter, cell_folders, derived, load_records, write_derived

OnDisk = Callable[..., Path]
BOTH = ["analyzing the cells ...", "drawing the figures ..."]


@pytest.fixture(scope="module", autouse=True)
def _few_figures() -> Iterator[None]:
    """Two figures are enough here, and faster."""
    few = {name: FIGURES[name] for name in ("loss_curves", "grad_norm_vs_rank")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("study.figures.FIGURES", few)
        yield


def report_on(folder: Path) -> list[str]:
    """Write the report of a study and return what was done for it."""
    notices: list[str] = []
    write_report(folder, folder.parent.parent / "plots" / "known", notices.append)
    return notices


@pytest.fixture(scope="module")
def once(on_disk_in: OnDisk, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A study before its report, and a copy of it with the report. Tests change copies."""
    before, after = (tmp_path_factory.mktemp(name) for name in ("before", "after"))
    on_disk_in(before, ranks=(4, 32), seeds=(0,))
    shutil.copytree(before, after, dirs_exist_ok=True)
    assert report_on(after / "results/known") == BOTH
    return SimpleNamespace(before=before, after=after)


@pytest.fixture
def small(once: SimpleNamespace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once.before, tmp_path, dirs_exist_ok=True)) / "results/known"


@pytest.fixture
def reported(once: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A study with its report. ``again()`` writes the report again and returns what it did."""
    shutil.copytree(once.after, tmp_path, dirs_exist_ok=True)
    folder, plots = tmp_path / "results/known", tmp_path / "plots/known"
    return SimpleNamespace(folder=folder, plots=plots, again=partial(report_on, folder))


def cells_of_rank(folder: Path, rank: float) -> list[Path]:
    records = load_records(folder)
    ids = [r["cell_id"] for r in records if r["config"]["adapter"]["rank"] == rank]
    return [folder / "cells" / cell_id for cell_id in ids]


def test_nothing_is_made_twice(reported: SimpleNamespace) -> None:
    assert reported.again() == []


def test_modification_times_and_places_play_no_part(
    reported: SimpleNamespace, tmp_path: Path
) -> None:
    later = reported.plots.stat().st_mtime + 60
    for path in (reported.folder / "cells").rglob("*"):
        os.utime(path, (later, later))
    assert reported.again() == []
    shutil.copytree(tmp_path / "results", tmp_path / "clone" / "results")
    shutil.copytree(tmp_path / "plots", tmp_path / "clone" / "plots")
    assert report_on(tmp_path / "clone/results/known") == []


def test_a_deleted_cell_is_gone_from_the_report(reported: SimpleNamespace) -> None:
    exponents = pd.read_parquet(reported.folder / "exponents.parquet")
    assert set(exponents["rank_min"]) == {4.0}
    for cell in cells_of_rank(reported.folder, 4):
        shutil.rmtree(cell)
    assert reported.again() == BOTH
    assert pd.read_parquet(reported.folder / "exponents.parquet").empty
    text = (reported.folder / "report.md").read_text()
    assert "ranks 32;" in text
    assert "grad_norm_vs_rank" not in text
    assert not (reported.plots / "grad_norm_vs_rank.png").exists()
    assert not (reported.plots / "grad_norm_vs_rank.pdf").exists()


def test_a_cell_with_other_numbers_counts_even_at_the_old_time(reported: SimpleNamespace) -> None:
    path = next((reported.folder / "cells").glob("*/metrics.parquet"))
    before = path.stat()
    metrics = pd.read_parquet(path)
    schema_keeping = metrics.assign(loss=metrics["loss"] + 1)
    schema_keeping.to_parquet(path, index=False)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reported.again() == BOTH


def test_other_code_makes_everything_again(
    reported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "_code", lambda packages: "other code")
    assert reported.again() == BOTH


def test_code_of_figures_leaves_the_tables(
    reported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = derived._code
    other = {derived.FIGURES: "other code"}
    monkeypatch.setattr(derived, "_code", lambda packages: other.get(packages) or code(packages))
    assert reported.again() == BOTH[1:]


def test_new_distances_are_drawn(reported: SimpleNamespace) -> None:
    write_derived(reported.folder, "distances", pd.DataFrame({"cell_id": ["x"]}), "any")
    assert "drawing the figures ..." in reported.again()


def test_a_lost_picture_is_drawn_again(reported: SimpleNamespace) -> None:
    (reported.plots / "loss_curves.png").unlink()
    assert reported.again() == BOTH[1:]
    assert (reported.plots / "loss_curves.png").exists()


def test_interrupted_drawing_is_not_current(
    reported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(cells_of_rank(reported.folder, 32)[0])
    with monkeypatch.context() as patched:
        patched.setattr(derived, "write_drawn", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            reported.again()
    assert reported.again() == BOTH[1:]


def test_figures_and_analyze_use_the_same_tables(small: Path) -> None:
    runner = CliRunner()
    drawn = runner.invoke(cli, ["figures", str(small)], catch_exceptions=False)
    assert BOTH[0] in drawn.output
    assert (small.parent.parent / "plots/known/grad_norm_vs_rank.png").exists()
    analyzed = runner.invoke(cli, ["analyze", str(small)], catch_exceptions=False)
    assert BOTH[0] not in analyzed.output
    assert "exponents.parquet" in analyzed.output


def test_load_warns_of_tables_that_are_older_than_the_cells(
    reported: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(study.load(str(reported.folder)).exponents) > 0
    assert caplog.messages == []
    shutil.rmtree(cells_of_rank(reported.folder, 4)[0])
    with caplog.at_level(logging.WARNING):
        study.load(str(reported.folder))
    [line] = caplog.messages
    assert line == (
        f"exponents, stable, rates, losses of {reported.folder} are out of date: "
        f"run `study analyze {reported.folder}`"
    )


def test_distances_of_a_deleted_cell_are_left_out(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [folder.name for folder in cell_folders(small)]
    table = pd.DataFrame({"cell_id": [*ids, "free x"], "value": 1.0})
    write_derived(small, "distances", table, derived.complete_cells_hash(small))
    assert len(current_tables(small, lambda line: None).distances) == len(ids) + 1
    assert caplog.messages == []
    shutil.rmtree(small / "cells" / ids[0])
    with caplog.at_level(logging.WARNING):
        tables = current_tables(small, lambda line: None)
    assert tables.distances["cell_id"].to_list() == [*ids[1:], "free x"]
    assert caplog.messages == [
        f"distances of {small} is out of date: run `study distances {small}`"
    ]


def test_a_running_cell_that_has_grown_is_new_data(small: Path) -> None:
    record = load_records(small)[0] | {"cell_id": "running"}
    writer = CellWriter.open(small / "cells" / "running", "", record)
    row = pd.DataFrame([{"step": 0, "tokens": 9, "loss": 2.0}])
    writer.append("metrics", row)
    first = derived.data_hash(small)
    assert derived.data_hash(small) == first
    writer.append("metrics", row.assign(step=1))
    second = derived.data_hash(small)
    writer.close("complete")
    assert len({first, second, derived.data_hash(small)}) == 3
