"""The usual slips on the command line get one line with the corrected text."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from study.config.hints import arranged, meant
from study.config.keys import known_keys
from study.errors import StudyError

SLIPS = {
    "rank=4": "unknown key rank: did you mean adapter.rank=4?",
    "lr=1e-3": "unknown key lr: did you mean optimizer.lr=1e-3?",
    "alpha=16": "unknown key alpha: did you mean adapter.alpha=16?",
    "steps=5": "unknown key steps: did you mean train.steps=5 or probes.steps=5?",
    "scaling=rslora": "unknown key scaling: did you mean adapter.scaling=rslora?",
    "learning_rate=1e-4": "unknown key learning_rate: did you mean optimizer.lr=1e-4?",
    "lora_alpha=32": "unknown key lora_alpha: did you mean adapter.alpha=32?",
    "use_rslora=true": "unknown key use_rslora: did you mean adapter.scaling=rslora?",
    "adapter.rnak=4": "unknown key adapter.rnak: did you mean adapter.rank=4?",
    "adapter.lr=1": "unknown key adapter.lr: did you mean optimizer.lr=1?",
    "trian.steps=3": "unknown key trian.steps: did you mean train.steps=3?",
    "optimizer.momentum=0.9": "optimizer.momentum is a key of one of optimizer=momentum, opt",
    "data.format=alpaca": "data.format is a key of data=file only: give that, or remove",
    "optimzer=sgd": "unknown key optimzer: did you mean optimizer=sgd?",
    "experimnt=quick": "unknown key experimnt: did you mean experiment=quick?",
    "optimizer=adamv": "; did you mean adam?",
    "experiment=qick": "; did you mean quick?",
    "nothing=1": "unknown key nothing: choose from model, data, adapter",
    "--rank 4": "unknown option --rank: keys have no dashes, so write adapter.rank=4",
    "--learning-rate=1e-4": "keys have no dashes, so write optimizer.lr=1e-4",
    "--adapter.rank=4": "keys have no dashes, so write adapter.rank=4",
    "--multirn": "unknown option --multirn: did you mean --multirun?",
    "--bogus": "unknown option --bogus: see study train --help",
    "--cfg jb": "invalid choice: 'jb'",
    "adapter.rank=4 8 16": "8 is not key=value: write -m adapter.rank=4,8,16",
    "adapter.rank=4, 8": "adapter.rank=4, has a comma too many: write adapter.rank=4,8",
    "adapter.rank=4,8,": "adapter.rank=4,8, has a comma too many: write adapter.rank=4,8",
    "adapter.rank=4,8": "add -m to sweep over it, or write adapter.rank=[4,8] for one list",
    "adapter.rank = 4": "adapter.rank is not key=value: write adapter.rank=4",
    "optimizer=sgd adamw": "adamw is not key=value: write -m optimizer=sgd,adamw",
    "quick": "quick is not key=value: write experiment=quick",
    "=4": "=4 is not key=value: write an override such as adapter.rank=64",
    "+rank=4": "+rank=4 adds a key that nothing reads: write adapter.rank=4",
    "-sc install=bash": 'eval "$(study completion bash)"',
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_gets_one_line(study_cli: Callable[..., Any], tmp_path: Path, slip: str) -> None:
    ran = study_cli("train", "model=tiny", f"results_dir={tmp_path}", *slip.split())
    assert ran.code == 2
    assert ran.out == ""
    [line] = ran.err.splitlines()
    assert line.startswith("study: ")
    assert SLIPS[slip] in line
    assert not list(tmp_path.iterdir())


def test_a_slip_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from study import cli; sys.argv[1:] = ['train', '-m', 'rank=4,8']\n"
        "try: cli.main()\n"
        "finally: print(*{'torch', 'pandas', 'transformers'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split()) == (2, [])
    assert "did you mean adapter.rank=4,8?" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["seed=1", "-m", "name=a"], ["-m", "seed=1", "name=a"]),
        (["seed=1", "--cfg", "job", "name=a"], ["--cfg", "job", "seed=1", "name=a"]),
        (["--config-dir", "here", "~pack.fold"], ["--config-dir", "here", "~pack.fold"]),
        (["+base=1", "optimizer.lr=${base}"], ["+base=1", "optimizer.lr=${base}"]),
        (["+rank=4", "adapter.rank=${rank}"], ["+rank=4", "adapter.rank=${rank}"]),
        (["'name=\"a,\"'", "adapter.targets=[a,]"], ["'name=\"a,\"'", "adapter.targets=[a,]"]),
        (["hydra/launcher=joblib", "seed="], ["hydra/launcher=joblib", "seed="]),
    ],
)
def test_right_arguments_pass(arguments: Sequence[str], expected: Sequence[str]) -> None:
    assert arranged(arguments) == expected


@pytest.mark.parametrize("key", [key for key in known_keys() if "." in key])
def test_every_key_is_found_with_two_letters_swapped(key: str) -> None:
    group, _, last = key.rpartition(".")
    if len(last) > 3 and key != "probes.sites":  # probes.sties may be probes.steps as well
        assert meant(f"{group}.{last[0]}{last[2]}{last[1]}{last[3:]}", known_keys()) == [key]
    assert key in meant(key, known_keys())


def test_nothing_is_suggested_for_another_word() -> None:
    assert meant("xyzzy", known_keys()) == []
    with pytest.raises(StudyError, match=r"such as adapter\.rank=64"):
        arranged(["xyzzy"])
