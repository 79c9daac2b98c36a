"""``study dashboard`` waits for the first cell of a study."""

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from study import cli
from study.cli.dashboard import wait_for_cells
from study.errors import StudyError


def write_record(study_dir: Path) -> None:
    (study_dir / "cells/a").mkdir(parents=True)
    (study_dir / "cells/a/record.json").write_text("{}")


def test_it_says_once_that_it_waits(tmp_path: Path) -> None:
    study_dir, pauses = tmp_path / "results/mine", list[float]()
    write_record(tmp_path / "results/other")

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            (study_dir / "cells/a").mkdir(parents=True)  # a cell that has no record yet
        if len(pauses) == 3:
            (study_dir / "cells/a/record.json").write_text("{}")

    said: list[str] = []
    wait_for_cells(study_dir, said.append, pause)
    assert len(pauses) == 3
    [line] = said
    assert line.startswith(f"waiting for the first cell (no study in {study_dir}: train one with")
    assert f"or choose from {tmp_path / 'results/other'}" in line
    wait_for_cells(study_dir, pytest.fail, lambda _: pytest.fail("it is there"))


def test_it_does_not_wait_where_no_cell_will_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_record(tmp_path / "results/mine")
    for place in ("file", "file/below", "results"):
        with pytest.raises(StudyError, match="no study in"):
            wait_for_cells(tmp_path / place, pytest.fail, lambda _: pytest.fail("it waits"))


def test_the_command_serves_when_the_cell_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn")
    study_dir = tmp_path / "results/mine"
    served: list[bool] = []
    monkeypatch.setattr(
        "study.dashboard.server.serve",
        lambda studies, *_: served.append((studies[0] / "cells/a/record.json").exists()),
    )
    threading.Timer(0.2, write_record, [study_dir]).start()
    ran = CliRunner().invoke(cli.cli, ["dashboard", str(study_dir)])
    assert ran.exit_code == 0, ran.output
    assert served == [True]
    assert "waiting for the first cell" in ran.stderr
