"""The extras that messages name are those of the distribution."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from study.vocabulary.extras import DISTRIBUTION

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_distribution_has_the_name_and_the_extras_that_messages_name():
    assert PROJECT["name"] == DISTRIBUTION
    texts = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "study").rglob("*.py")]
    named = {extra for text in texts for extra in re.findall(r"\binstall\(['\"](\w+)", text)}
    assert {"dashboard", "peft"} <= named <= set(PROJECT["optional-dependencies"])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("pytorch_optimizer", ("train", "model=tiny", "optimizer=lion"), "optimizers"),
        ("gguf", ("fetch", "smollm2"), "smollm2"),
    ],
)
def test_a_missing_package_is_one_line_before_anything_is_written(
    package, arguments, extra, refused, tmp_path_factory, monkeypatch
):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("STUDY_CACHE", str(cache))
    line = refused(*arguments)
    assert package in line
    assert f"pip install '.[{extra}]'" in line
    assert not list(cache.rglob("*.whl"))


def test_every_imported_package_is_declared():
    """Packages that another dependency brings may leave with its next version."""
    names = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    declared = {re.split(r"[>=<\[]", name)[0].lower().replace("-", "_") for name in names}
    other_names = {"yaml": "pyyaml", "hydra": "hydra_core", "markdown_it": "markdown_it_py"}
    other_names |= {"pydantic_core": "pydantic"}  # which pins the version of its core
    known = sys.stdlib_module_names | {"study", "hydra_plugins", "benchmarks", "axolotl", "ray"}
    found = {
        node.names[0].name if isinstance(node, ast.Import) else str(node.module)
        for file in (REPOSITORY / "study").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
    }
    tops = {name.partition(".")[0] for name in found} - known
    assert {other_names.get(name, name) for name in tops} <= declared


def test_no_file_names_another_distribution():
    """``study`` on PyPI is a different project: no text may tell anyone to install it."""
    other = r"pip install ([^.]*[ '])?study(\[|$| )"
    wrong = ["git", "grep", "-nE", other, "--", ":!tests/vocabulary"]
    assert subprocess.run(wrong, cwd=REPOSITORY, capture_output=True, text=True).stdout == ""
