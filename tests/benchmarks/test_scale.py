"""``study bench scale``: every command on a study of tiny cells."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import cost


def test_every_command_is_timed(study_cli: Any) -> None:
    ran = study_cli("bench", "scale", "--cells=1")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line.split()[1] for line in lines] == [
        *("train", "train", "train,", "status", "check", "analyze", "dashboard")
    ]
    assert all(line.endswith(" GB") for line in lines)


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 2:\nstudy: no study in"):
        cost(["status", str(tmp_path)], tmp_path / "log")
