"""The wheel in a virtual environment of its own, with only the dependencies that it declares.

The installation takes a minute or two. Only CI runs it, or ``CI=1 pytest tests/test_wheel.py``.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from study.vocabulary.extras import DISTRIBUTION

REPOSITORY = Path(__file__).parents[1]
SWEEP = "model=tiny adapter.rank=4,8,16 adapter.scaling=lora,rslora seed=0,1,2 train.steps=2"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_types_the_configuration_and_the_page(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"study/py.typed", "study/conf/config.yaml", "study/dashboard/page/page.html"} <= names
    assert not {name for name in names if name.startswith(("tests/", "results/", "docs/"))}


@pytest.mark.skipif(not os.environ.get("CI"), reason="installs a wheel: CI runs it, or set CI=1")
def test_an_installed_wheel_runs_the_lines_of_the_readme(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    workplace = tmp_path / "workplace"
    workplace.mkdir()

    def run(*line: str) -> str:
        ran = subprocess.run(line, cwd=workplace, env=kept, capture_output=True, text=True)
        assert ran.returncode == 0, (line, ran.stdout[-2000:], ran.stderr[-2000:])
        assert "Traceback" not in ran.stderr
        return ran.stdout

    study = str(environment / "bin" / "study")
    run(study, "train", "-m", *SWEEP.split(), "name=mine")
    assert run(study, "status", "results/mine").count("complete") >= 18
    for verb in ("analyze", "figures", "report", "check"):
        run(study, verb, "results/mine")
    assert (workplace / "plots/mine/grad_norm_vs_rank.png").is_file()
    assert (workplace / "results/mine/report.html").is_file()
    loaded = "import study; print(len(study.load('results/mine').cells))"
    assert run(str(python), "-c", loaded).split() == ["18"]
    listed = run(str(python), "-m", "pip", "list", "--format=freeze")
    assert f"{DISTRIBUTION.replace('-', '_')}==" in listed.replace("-", "_")
    assert "peft==" not in listed
