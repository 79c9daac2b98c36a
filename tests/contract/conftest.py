"""One small study, trained by the command line, for every test of the contract."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked import STUDY, Forked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("contract")


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """The folder in which the commands run, with forty rows of data."""
    folder = tmp_path_factory.mktemp("contract")
    rows = [
        {"context": f"Say {'very ' * (n % 5)}{n} twice:", "target": f" {n} {n}"} for n in range(40)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def command(home) -> Callable[..., str]:
    """``command("train", "-m", ...)`` runs ``study`` as a process and returns what it printed."""

    def run(*arguments):
        done = Forked(STUDY, arguments, home, os.environ | {"COLUMNS": "100"}).wait()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


SWEEP = (
    *("train", "-m", "name=small", "model=tiny", "data=file", "data.path=train.jsonl"),
    *("data.sequence_length=32", "data.heldout=4", "train.steps=2", "train.batch_size=2"),
    *("adapter.rank=4,16", "adapter.scaling=lora,rslora", "seed=0,1,2", "optimizer=sgd"),
    *("optimizer.lr=1e-4", "train.save_adapter=true", "probes.batch=[train,heldout]"),
)


@pytest.fixture(scope="session")
def small(home, command) -> Path:
    """The folder of a study of 12 cells: two ranks, two rules, three seeds, two steps; analyzed."""
    command(*SWEEP)
    command("analyze", "results/small")
    return home / "results" / "small"
