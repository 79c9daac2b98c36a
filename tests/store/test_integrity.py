"""``study check`` names every file that changed, and the command that repairs it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from study.cli import cli
from study.store import CellWriter, load_measured, write_table
from study.store.checkpoints import Checkpoint, save
from tests.store.small_cells import append, flip

STOPPED = "cells/stopped/checkpoints/step-00000001"


@pytest.fixture
def study_dir(tmp_path: Path, begin: Callable[..., CellWriter]) -> Path:
    """``ended`` and ``other`` are complete, ``stopped`` is interrupted and has checkpoints."""
    ended = begin("ended", 3)
    (ended.folder / "adapter").mkdir()
    (ended.folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(100))
    ended.close("complete", steps_done=2)
    begin("other", 3).close("complete", steps_done=2)
    stopped = begin("stopped")
    for step in (0, 1):
        weights = {"weights/A": np.full(100, 0.5, "f4")}
        append(stopped, range(step, step + 1))
        save(stopped.folder, Checkpoint("stopped", step + 1, weights, {}), stopped.sync)
    stopped.interrupt()
    distances = pd.DataFrame({"cell_id": "ended", "value": np.linspace(0, 1, 500)})
    write_table(tmp_path / "distances.parquet", distances)
    return tmp_path


def check(study_dir: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["check", str(study_dir), *options])


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a record": (
        lambda study: (study / "cells/ended/record.json").write_bytes(b""),
        "cells/ended: record.json is damaged",
        "mv",
    ),
    "a table": (
        lambda study: flip(study / "cells/ended/metrics.parquet"),
        "cells/ended: metrics.parquet is damaged: its size or hash",
        "mv",
    ),
    "a checkpoint": (
        lambda study: flip(study / f"{STOPPED}.safetensors", 0.9),
        f"{STOPPED}.json: Damaged: step-00000001.safetensors is",
        "rm",
    ),
    "the distances": (
        lambda study: flip(study / "distances.parquet", 0.3),
        "distances.parquet: distances.parquet is damaged",
        "rm",
    ),
    "an adapter": (
        lambda study: flip(study / "cells/ended/adapter/adapter_model.safetensors"),
        "cells/ended: adapter_model.safetensors is damaged",
        "mv",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_its_repair_works(study_dir: Path, kind: str) -> None:
    assert check(study_dir).output == "3 cells: no problem\n"
    damage, line, command = DAMAGE[kind]
    damage(study_dir)
    result = check(study_dir)
    assert result.exit_code == 1
    found, summary = result.output.splitlines()
    assert found.startswith(f"{study_dir}/{line}")
    assert summary.startswith("3 cells: 1 problem. Run `study check ")
    repair = check(study_dir, "--repair")
    assert repair.exit_code == 1
    [printed] = repair.stdout.splitlines()
    assert f"{command} --" in printed
    assert check(study_dir).output == result.output, "it repairs nothing itself"

    subprocess.run(printed, shell=True, check=True)
    assert check(study_dir).exit_code == 0
    assert len(load_measured(study_dir).cells) == (2 if command == "mv" else 3)


def test_a_running_cell_is_left_alone(study_dir: Path, begin: Callable[..., CellWriter]) -> None:
    writer = begin("running", 2)
    with (writer.folder / "metrics.arrows").open("ab") as file:
        file.write(b"a part of a row")
    assert check(study_dir).exit_code == 0
    writer.claim.release()
