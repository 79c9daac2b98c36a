"""The help of a command."""

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

import study
from study.cli import cli
from study.cli.group import COMMANDS


def test_the_help_of_a_command_begins_with_its_line_in_the_list() -> None:
    for name, (_, line) in COMMANDS.items():
        if name not in ("train", "bench"):  # they parse their own arguments
            shown = CliRunner().invoke(cli, [name, "--help"]).output.split("\n\n")
            assert " ".join(shown[1].split()) == line


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "study", "--version"]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert study.__version__ in ran.stdout
