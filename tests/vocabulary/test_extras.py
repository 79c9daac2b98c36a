"""The extras that messages name are those of the distribution."""

import re
import tomllib
from pathlib import Path

import pytest

from study.vocabulary.extras import DISTRIBUTION, EXTRAS, install

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_distribution_has_the_name_and_the_extras_of_the_table() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert set(PROJECT["optional-dependencies"]) - {"dev"} == set(EXTRAS)


def test_an_unknown_extra_has_no_command() -> None:
    assert install("wandb") == "pip install '.[wandb]'"
    with pytest.raises(KeyError):
        install("torch")


def test_no_file_names_another_distribution() -> None:
    """``study`` on PyPI is a different project: no text may tell anyone to install it."""
    here = Path(__file__)
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".js", ".html", ""}
    folders = ("study", "conf", "docs", "benchmarks", "tests", "hydra_plugins")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    files += [REPOSITORY / "README.md", REPOSITORY / "Makefile", REPOSITORY / "ARCHITECTURE.md"]
    wrong = re.compile(r"pip install[^\n]*\bstudy\[|pip install study\b")
    named = [
        path.relative_to(REPOSITORY).as_posix()
        for path in files
        if path.is_file() and path.suffix in suffixes and path != here
        if wrong.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert named == []
