"""What the wheel holds. ``.ci/floors`` installs it and runs the commands.

That every package that is imported is declared is tested in ``tests/vocabulary/test_extras.py``.
"""

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


def test_its_hints_install_the_extras_of_the_distribution(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from study.vocabulary.extras import install; print(install('quant'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "pip install 'rank-study[quant]'\n", run.stderr
    texts = [file.read_text() for file in tmp_path.glob("study/conf/*/*.yaml")]
    assert "pip install '." not in "".join(texts)
