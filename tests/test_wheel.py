"""The wheel in a virtual environment of its own, with only the dependencies that it declares.

The environment holds links to the packages of this one, which installed the same requirements:
downloading and unpacking torch again would take a minute.
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
SWEEP = "model=tiny adapter.rank=4,8,16 adapter.scaling=lora,rslora seed=0 train.steps=2"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """The installed distributions that ``requirements`` need, directly or through others.

    Pip would also install only these.
    """
    found: dict[str, Distribution] = {}
    seen, waiting = set(), [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (requirement.name, wanted) not in seen:
                seen.add((requirement.name, wanted))
                found[requirement.name] = distribution(requirement.name)
                inner = found[requirement.name].requires or []
                waiting += [(Requirement(text), wanted) for text in inner]
    return found


def link(installed: Distribution, target: Path) -> None:
    """Link the packages, modules and metadata of a distribution in the folder ``target``.

    Several distributions may share a folder without ``__init__.py``: it is created, and its
    content is linked.
    """
    source = Path(str(installed.locate_file("")))
    for file in installed.files or []:
        place = Path()
        for part in file.parts:
            place /= part
            if place.suffix or (source / place / "__init__.py").exists():
                break
        if ".." in place.parts or (target / place).is_symlink():
            continue
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).symlink_to(source / place)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    target = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    (metadata,) = (path for path in zipfile.Path(wheel).iterdir() if path.suffix == ".dist-info")
    requirements = PathDistribution(metadata).requires
    assert requirements
    for installed in needed(requirements).values():
        link(installed, target)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    checked = subprocess.run([*pip, "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    return folder


def test_the_wheel_has_the_types_the_configuration_and_the_page(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"study/py.typed", "study/conf/config.yaml", "study/dashboard/page/page.html"} <= names
    assert not {name for name in names if name.startswith(("tests/", "results/", "docs/"))}


def test_only_what_is_needed_is_found() -> None:
    found = needed(["rank-study"])
    assert {"torch", "hydra-core", "antlr4-python3-runtime"} <= set(found), "and their needs"
    assert not {"peft", "pytest"} & set(found), "the needs of extras"
    with pytest.raises(PackageNotFoundError):
        needed(["a-package-that-nobody-installed"])


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
    assert run(study, "status", "results/mine").count("complete") >= 6
    for verb in ("analyze", "figures", "report", "check"):
        run(study, verb, "results/mine")
    assert (tmp_path / "plots/mine/grad_norm_vs_rank.png").is_file()
    assert (tmp_path / "results/mine/report.html").is_file()
    about = "import study; print(len(study.load('results/mine').cells), study.__file__)"
    cells, place = run(str(python), "-c", about).split()
    assert cells == "6"
    assert Path(place).is_relative_to(environment), "the wheel, and not the clone"
    without = "from importlib.util import find_spec; print(find_spec('peft'), find_spec('pytest'))"
    assert run(str(python), "-c", without).split() == ["None", "None"]
