"""``python -m study`` is the console script ``study``."""

import runpy
import sys

import pytest

import study


def test_the_package_runs_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", "--version"])
    runpy.run_module("study", run_name="__main__")
    assert study.__version__ in capsys.readouterr().out
