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


def test_it_does_not_wait_where_no_cell_will_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_record(tmp_path / "results/mine")
    for place in ("file", "file/below", "results"):
        with pytest.raises(StudyError, match="no study in"):
            wait_for_cells(tmp_path / place)


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
    assert ran.stderr.count("waiting for the first cell (no study in") == 1
