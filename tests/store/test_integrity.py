"""``study check`` names every file that changed, and the command that repairs it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from study.cli import cli
from study.store import CellWriter, is_done, load_measured, write_table
from study.store.checkpoints import Checkpoint, save
from study.store.integrity import check_study
from tests.store.small_cells import RECORD, flip, metrics


def begin(study_dir: Path, cell_id: str) -> CellWriter:
    """A cell with three rows, and a checkpoint before the second and the third."""
    folder = study_dir / "cells" / cell_id
    writer = CellWriter.open(folder, "x: 1\n", RECORD | {"cell_id": cell_id})
    for step in range(3):
        writer.append("metrics", metrics(step))
        if step < 2:
            weights = {"weights/A": np.full(100, 0.5, "f4")}
            save(folder, Checkpoint(cell_id, step + 1, weights, {}), writer.sync)
    return writer


@pytest.fixture
def study_dir(tmp_path: Path) -> Path:
    """``ended`` and ``other`` are complete, ``stopped`` is interrupted."""
    study = tmp_path / "results" / "mine"
    ended = begin(study, "ended")
    (ended.folder / "adapter").mkdir()
    (ended.folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(100))
    ended.close("complete", steps_done=2)
    begin(study, "other").close("complete", steps_done=2)
    begin(study, "stopped").interrupt()
    write_table(
        study / "distances.parquet",
        pd.DataFrame({"cell_id": "ended", "value": np.linspace(0, 1, 500)}),
    )
    return study


def check(study_dir: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["check", str(study_dir), *options])


def test_a_whole_study_has_no_problem(study_dir: Path) -> None:
    result = check(study_dir)
    assert result.output == "3 cells: no problem\n"
    assert result.exit_code == 0


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a record": (
        lambda study: (study / "cells/ended/record.json").write_bytes(b""),
        "cells/ended: record.json is not valid JSON",
        "mv",
    ),
    "a table": (
        lambda study: flip(study / "cells/ended/metrics.parquet"),
        "cells/ended: metrics.parquet is damaged: its hash is not the one in record.json",
        "mv",
    ),
    "a missing table": (
        lambda study: (study / "cells/ended/metrics.parquet").unlink(),
        "cells/ended: metrics.parquet is missing",
        "mv",
    ),
    "a checkpoint": (
        lambda study: flip(study / "cells/stopped/checkpoints/step-00000001.safetensors", 0.9),
        "cells/stopped/checkpoints/step-00000001.json: ",
        "rm",
    ),
    "the distances": (
        lambda study: flip(study / "distances.parquet", 0.3),
        "distances.parquet: is damaged",
        "rm",
    ),
    "an adapter": (
        lambda study: flip(study / "cells/ended/adapter/adapter_model.safetensors"),
        "cells/ended: adapter/adapter_model.safetensors is damaged",
        "mv",
    ),
    "a copy": (
        lambda study: (study / "cells/other").rename(study / "cells/other (1)"),
        "cells/other (1): copied from the cell 'other'",
        "mv",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_its_repair_works(study_dir: Path, kind: str) -> None:
    damage, line, command = DAMAGE[kind]
    damage(study_dir)
    result = check(study_dir)
    assert result.exit_code == 1
    found, summary = result.output.splitlines()
    assert found.startswith(f"{study_dir}/{line}")
    assert summary.startswith("3 cells: 1 problem. Run `study check ")
    repair = check(study_dir, "--repair")
    assert repair.exit_code == 1
    commands = repair.stdout.splitlines()
    assert len(commands) == 1
    assert f"{command} -" in commands[0] or f"{command} --" in commands[0]
    assert check(study_dir).output == result.output, "it repairs nothing itself"

    subprocess.run(commands[0], shell=True, check=True, cwd=study_dir.parents[1])
    assert check(study_dir).exit_code == 0
    assert len(load_measured(study_dir).cells) == (2 if command == "mv" else 3)


def test_what_a_killed_process_left_is_no_damage(study_dir: Path) -> None:
    ended = study_dir / "cells" / "ended"
    (ended / "metrics.arrows").touch()
    (ended / "record.json.1.ab.partial").touch()
    (ended / "checkpoints").mkdir()
    (study_dir / "cells" / "notes").touch()
    (study_dir / "exponents.parquet.partial").touch()
    result = check(study_dir)
    assert result.exit_code == 0
    assert "3 cells: no problem, 5 files to delete" in result.output
    for command in check(study_dir, "--repair").stdout.splitlines():
        subprocess.run(command, shell=True, check=True, cwd=study_dir.parents[1])
    assert check(study_dir).output == "3 cells: no problem\n"
    assert is_done(ended)


def test_a_running_cell_is_left_alone(study_dir: Path) -> None:
    writer = begin(study_dir, "running")
    with (study_dir / "cells/running/metrics.arrows").open("ab") as file:
        file.write(b"a part of a row")
    assert check(study_dir).exit_code == 0
    writer.claim.release()


def test_tables_without_a_record_are_mentioned(study_dir: Path) -> None:
    (study_dir / "cells/ended/record.json").unlink()
    [problem] = check_study(study_dir)
    assert not problem.is_damage
    assert problem.reason == "tables without record.json"


def test_a_name_that_can_not_be_printed_is_a_comment(study_dir: Path) -> None:
    """Not a command that a terminal would show as another one."""
    folder = study_dir / "cells" / "ended"
    folder.rename(folder.with_name("a\x1b[2Jb\nrm -rf ~"))
    repair = check(study_dir, "--repair")
    (line,) = repair.stdout.splitlines()
    assert line.startswith("# ")
    assert "\x1b" not in line
    assert "a\\x1b[2Jb\\nrm -rf ~" in line


def test_a_second_repair_does_not_replace_the_first(study_dir: Path) -> None:
    for name in ("ended", "ended"):
        (study_dir / "cells" / name).mkdir(exist_ok=True)
        (study_dir / "cells" / name / "record.json").write_bytes(b"")
        (command,) = check(study_dir, "--repair").stdout.splitlines()
        subprocess.run(command, shell=True, check=True, cwd=study_dir.parents[1])
    assert sorted(os.listdir(study_dir / "aside")) == ["ended", "ended.1"]


def test_a_folder_without_a_study_is_one_line(tmp_path: Path) -> None:
    result = check(tmp_path)
    assert "no study in" in str(result.exception)
