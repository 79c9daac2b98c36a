"""What the wheel holds. ``.ci/floors`` installs it and runs the commands.

That every package that is imported is declared is tested in ``tests/vocabulary/test_extras.py``.
"""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
UV = [sys.executable, "-m", "uv"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [*UV, "build", "--wheel", "--out-dir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_types_the_configuration_and_the_page(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"study/py.typed", "study/conf/config.yaml", "study/dashboard/page/page.html"} <= names
    assert "study/analysis/advice.json" in names
    assert not {name for name in names if name.startswith(("tests/", "results/", "docs/"))}


def texts_of(code):
    """The text constants of a module apart from docstrings, and the help of its commands."""
    tree = ast.parse(code)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            yield ast.get_docstring(node) or ""


def test_nothing_that_it_prints_names_a_page_that_it_lacks():
    """Messages, reports, the help of commands, and the comments of keys, which are help too."""
    folders = REPOSITORY / "study", REPOSITORY / "hydra_plugins"
    files = [file for folder in folders for file in folder.rglob("*.py")]
    found = {file.name: "\n".join(texts_of(file.read_text())) for file in files}
    conf = REPOSITORY / "conf"
    keys = [file for file in conf.rglob("*.yaml") if file.parent.name != "experiment"]
    found |= {str(file.relative_to(REPOSITORY)): file.read_text() for file in keys}
    assert len(keys) > 10
    assert [name for name, text in found.items() if "docs/" in text] == []


def test_its_hints_install_the_extras_of_the_distribution(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from study.vocabulary.extras import install; print(install('quant'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "pip install 'rank-study[quant]'\n", run.stderr
    texts = [file.read_text() for file in tmp_path.glob("study/conf/*/*.yaml")]
    assert "pip install '." not in "".join(texts)
