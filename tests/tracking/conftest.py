"""One small tracked sweep, and its contents as W&B's own reader prints them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.forked import STUDY, Forked

FEW_FIGURES = """
from study import figures
figures.FIGURES = {name: figures.FIGURES[name] for name in ("loss_curves", "grad_norm_vs_rank")}
"""
WANDB = Path(sys.executable).parent / "wandb"
SECRET = "0123456789abcdef0123456789abcdef01234567"
"""A key of the right form that no server accepts."""


@pytest.fixture(scope="session")
def study_process(short) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``study_process(folder, "train", ...)``: the console script in a forked process, on tiny.

    ``first``: code to run before it. Keywords are environment variables.
    """

    def run(folder, *arguments, first="", **environment):
        command, *rest = arguments
        flags = [argument for argument in rest if argument.startswith("-")]
        small = short if command == "train" else []
        line = [command, *flags, *small, *(argument for argument in rest if argument not in flags)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        return Forked(f"{first}\n{STUDY}", line, folder, clean | environment).wait()

    return run


@pytest.fixture(scope="session")
def tracked(tmp_path_factory, study_process) -> Path:
    """The folder of a sweep over two ranks and two rules in two packs, tracked offline."""
    folder = tmp_path_factory.mktemp("tracked")
    sweep = ["adapter.rank=2,4", "adapter.scaling=lora,rslora", "pack.max_cells=2", "tracker=wandb"]
    done = study_process(folder, "train", "-m", *sweep, first=FEW_FIGURES, WANDB_API_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture
def study_dir(tracked) -> Path:
    return tracked / "results/default"


@pytest.fixture(scope="session")
def inspect() -> Callable[[Path], list[dict[str, Any]]]:
    """The records of an offline run, as ``wandb leet inspect --json`` prints them.

    They are read once, because W&B's command line is slow to start.
    """

    @cache
    def records(run_dir):
        words = [WANDB, "leet", "inspect", "--json", run_dir]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return records
