"""``study status --watch`` beside a sweep that runs in processes of its own."""

import os
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from study.sweeps.status import load_status
from study.sweeps.watch import watch
from tests.forked import STUDY, Forked


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, jsonl: Path) -> tuple[Path, str, str]:
    """A sweep of three packs that was watched from its start.

    The folder, the output of ``status --watch`` and the stderr of ``train``.
    """
    folder = tmp_path_factory.mktemp("watched")
    small = [
        "model=tiny",
        "data=file",
        f"data.path={jsonl}",
        "data.sequence_length=32",
        "data.heldout=2",
    ]
    sweep = [*small, "train.batch_size=2", "train.steps=200", "adapter.rank=2,3,4"]
    sweep += ["pack.max_cells=1"]
    with Forked(STUDY, ["train", "-m", *sweep], folder, os.environ) as train:
        while not list((folder / "results/default").glob("sweeps/*.json")) and not train.ended:
            time.sleep(0.05)
        watching = Forked(STUDY, ["status", "results/default", "--watch"], folder, os.environ)
        looked, trained = watching.wait(), train.wait()
    assert looked.returncode == 0, looked.stderr
    assert trained.returncode == 0, trained.stderr
    return folder, looked.stdout, trained.stderr


def test_a_watch_follows_a_sweep_to_its_end(followed: tuple[Path, str, str]) -> None:
    _, out, _ = followed
    lines = out.strip().splitlines()
    seen = [line for line in lines if re.match(r"\d\d:\d\d:\d\d  default: ", line)]
    assert any("3 waiting" in line or "2 waiting" in line for line in seen), "from the start"
    assert any(re.search(r"1 running.*rank [234] lora at step \d+/200", line) for line in seen), (
        seen
    )
    assert any("of 3 packs done" in line for line in seen)
    assert lines[-1] == "next: study report results/default"
    assert "default: 3 complete" in lines
    assert sum(line.startswith("complete ") for line in lines) == 3


def test_training_counts_packs_and_prints_the_next_command(followed: tuple[Path, str, str]) -> None:
    *_, said = followed
    assert re.search(
        r"\[default\] pack 1/3  cell 1/1 \(1 of 3 done\)  .*complete in .* left\n", said
    )
    assert re.search(
        r"\[default\] pack 3/3  cell 1/1 \(3 of 3 done\)  .*complete in [\d.]+ s\n", said
    )
    assert said.endswith("study default: 3 complete\nnext: study report results/default\n")
    assert not re.search(r"[\r\x1b]", said), "a log file is plain text"


def test_a_finished_study_is_shown_once(followed: tuple[Path, str, str], tmp_path: Path) -> None:
    folder, *_ = followed
    with (tmp_path / "out").open("w+") as file:
        watch(folder / "results/default", Console(file=file, force_terminal=True, width=200))
        file.seek(0)
        shown = file.read()
    assert "default: 3 complete" in shown
    assert list(load_status(folder / "results/default")["status"]) == ["complete"] * 3
