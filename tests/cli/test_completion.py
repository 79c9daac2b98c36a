"""Completion in a shell, by the code that ``study completion`` prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import study

ROOT = str(Path(__file__).parents[2])
BASH = """
complete() { :; }
compopt() { echo "compopt $*"; }
eval "$(study completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_study_completion study "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""What readline does: it splits words at ``=``. ``complete`` needs an interactive shell."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ``PATH`` with this ``study`` first."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "study"
    script.write_text(f"#!{sys.executable}\nfrom study.cli import main\nmain()\n")
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def in_bash(path: str, *words: str) -> list[str]:
    script = Path(path.partition(os.pathsep)[0]) / "ask.bash"
    script.write_text(BASH)
    ran = subprocess.run(
        ["bash", script, *words],
        env=os.environ | {"PATH": path, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    return ran.stdout.split("\n")[:-1]


def test_verbs(path: str) -> None:
    assert in_bash(path, "study", "trai") == ["train"]
    assert in_bash(path, "study", "fetch", "") == ["smollm2", "gemma3"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer", "=", "ad"], ["adafactor", "adam", "adamw"]),
        (["adapter.sc"], ["compopt -o", "nospace", "adapter.scaling="]),
        (["experiment", "=", "qu"], ["quantised", "quick"]),
    ],
)
def test_overrides_in_bash(path: str, words: list[str], expected: list[str]) -> None:
    assert " ".join(in_bash(path, "study", "train", *words)) == " ".join(expected)


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "study", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert study.__version__ in ran.stdout
