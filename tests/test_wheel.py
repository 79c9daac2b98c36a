"""The wheel in a virtual environment of its own, which finds the packages of this one.

Downloading and unpacking torch again would take a minute. That every package that is imported is
declared is tested in ``tests/vocabulary/test_extras.py``.
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
UV = [sys.executable, "-m", "uv"]
SWEEP = "model=tiny adapter.rank=4,8,16 seed=0 train.steps=2"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [*UV, "build", "--wheel", "--out-dir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([*UV, "venv", "--quiet", "--allow-existing", str(folder)], check=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    (own / "others.pth").write_text(str(Path(pytest.__file__).parents[1]))  # behind its own
    pip = [*UV, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "--no-deps", "--reinstall", str(wheel)], check=True)
    return folder


def test_the_wheel_has_the_types_the_configuration_and_the_page(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"study/py.typed", "study/conf/config.yaml", "study/dashboard/page/page.html"} <= names
    assert "study/analysis/advice.json" in names
    assert not {name for name in names if name.startswith(("tests/", "results/", "docs/"))}


def test_an_installed_wheel_runs_the_lines_of_the_readme(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*line: str) -> str:
        ran = subprocess.run(line, cwd=tmp_path, env=kept, capture_output=True, text=True)
        assert ran.returncode == 0, (line, ran.stdout[-2000:], ran.stderr[-2000:])
        assert "Traceback" not in ran.stderr
        return ran.stdout

    study = str(environment / "bin" / "study")
    run(study, "train", "-m", *SWEEP.split(), "name=mine")
    run(study, "report", "results/mine")  # analyses the cells and draws the figures
    assert (tmp_path / "plots/mine/grad_norm_vs_rank.png").is_file()
    assert (tmp_path / "results/mine/report.html").is_file()
    about = "import study; print(len(study.load('results/mine').cells), study.__file__)"
    cells, place = run(str(python), "-c", about).split()
    assert cells == "3"
    assert Path(place).is_relative_to(environment), "the wheel, and not the clone"
