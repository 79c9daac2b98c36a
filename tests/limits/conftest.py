"""The console script, run in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hydra.core.global_hydra import GlobalHydra

from study import cli


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def study_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``study_cli("train", "-m", ...)`` as the console script runs it: exit code, stdout, stderr."""

    def run(*arguments: str) -> Ran:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
