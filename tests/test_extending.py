"""docs/extending.md: its parts run alone, and a study with all of its recipes runs."""

import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.figures.conftest import rows
from tests.forked import Forked

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/extending.md").read_text()
ALONE = "Parts that stand alone"
"""The heading of the parts that need little of the package."""
APPLICATION = {"hydra", "omegaconf", "matplotlib", "study.report", "study.sweeps"}
UNUSED = {
    "NormProbe": APPLICATION | {"study.analysis", "study.training"},
    "stable_exponent": APPLICATION
    | {"torch", "transformers", "pydantic", "study.store", "study.config"},
}
"""For each block of :data:`ALONE`, by a name in it: modules that it must not load."""
RECIPES = {
    "A statistic": "probes.stats=[all,kurtosis]",
    "An optimizer": "optimizer=signum",
    "An init": "adapter.init=wide",
    "A scaling rule": "adapter.scaling=rslora,cbrt,bent",
    "A data set": "data=sums",
    "A figure": "name=recipes",
    "A tracker": "tracker=json",
}
"""The headings of the page, and the override that uses what the recipe adds. Every study has all
figures, so that one only names the study."""
SWEEP = "model=tiny train.steps=2 train.batch_size=2 data.heldout=2 probes.steps=[0,1] "
SWEEP += "adapter.rank=2,8 seed=0 optimizer.lr=1e-3 pack.fold=8"
FIRST = {"site": "adapter_grad", "stat": "norm", "layer": "model", "step": 0}
COMMANDS = """
import json, sys
sys.path.insert(0, "")
from study import cli
from study.figures import FIGURES, style
for name in [*FIGURES][5:]:
    del FIGURES[name]
style.DPI = 40
plugins, lines = json.loads(sys.argv[1])
for line in lines:
    sys.argv = ["study", *plugins, *line]
    try:
        cli.main()
    except SystemExit as leaving:
        if leaving.code:
            raise
import pickle, study
pickle.dump(study.load("results/recipes"), open("tables.pickle", "wb"))
"""


def blocks(heading):
    """The code blocks under a heading: ``python``, and each YAML file by its path in ``conf/``."""
    section = TEXT[TEXT.index(f"## {heading}\n") :].split("\n## ")[0]
    found = re.findall(r"```(python|yaml)\n(.*?)```", section, re.DOTALL)
    return {
        body.splitlines()[0].removeprefix("# conf/") if kind == "yaml" else kind: body
        for kind, body in found
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one study with all recipes was trained and shown, in a process of its own.

    Each recipe is a plug-in in the working directory. The one of the data set is that of an
    installed package.
    """
    place = tmp_path_factory.mktemp("recipes")
    modules = {f"recipe_{number}": heading for number, heading in enumerate(RECIPES)}
    for module, heading in modules.items():
        for name, body in blocks(heading).items():
            path = place / (f"{module}.py" if name == "python" else f"conf/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body)
    installed = next(name for name, heading in modules.items() if heading == "A data set")
    (place / "sums-1.dist-info").mkdir()
    (place / "sums-1.dist-info/METADATA").write_text("Name: sums\nVersion: 1\n")
    entry = f"[study.plugins]\nsums = {installed}\n"
    (place / "sums-1.dist-info/entry_points.txt").write_text(entry)
    plugins = [f"--plugin={name}" for name in modules if name != installed]
    searched = f"hydra.searchpath=[file://{place}/conf]"
    lines = [
        ["train", "-m", searched, *SWEEP.split(), *RECIPES.values()],
        ["analyze", "results/recipes", "-q"],
        ["report", "results/recipes"],
    ]
    done = Forked(COMMANDS, [json.dumps([plugins, lines])], place, os.environ).wait()
    assert done.returncode == 0, done.stderr
    (place / "printed.txt").write_text(done.stdout)
    return place


@pytest.fixture(scope="module")
def tables(folder):
    """As the process with the recipes loads them. Another one does not know their words."""
    return pickle.loads((folder / "tables.pickle").read_bytes())


@pytest.fixture(scope="module")
def report(folder):
    return (folder / "results/recipes/report.md").read_text()


def test_every_recipe_of_the_page_is_tested():
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE) == [ALONE, *RECIPES]


@pytest.mark.parametrize("part", UNUSED)
def test_a_part_runs_without_the_rest_of_the_package(part, tmp_path):
    """In a new process: one that is forked has imported torch already."""
    section = TEXT.partition(f"## {ALONE}\n")[2].partition("\n## ")[0]
    [code] = [one for one in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if part in one]
    code += "\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "study" in loaded
    assert loaded & UNUSED[part] == set()


def test_an_optimizer(tables, report):
    assert set(tables.cells["optimizer"]) == {"signum"}
    assert set(tables.cells["momentum"]) == {0.9}
    first = tables.stable[tables.stable["step"] == 0]
    limits = first.loc[first["site"] == "adapter_update", "limit"].dropna()
    assert set(limits) == {1.0}, "a sign-like rule: p* of descent is 1"
    assert "Signum" in report


def test_an_init(tables):
    assert set(tables.cells["init"]) == {"wide"}
    assert rows(tables.exponents, **FIRST)["predicted"].notna().all()
    drawn = tables.probes[(tables.probes["site"] == "A") & (tables.probes["step"] == 0)]
    expected = (3 / drawn["d_in"]) ** 0.5
    assert (drawn["rms"] / expected).mean() == pytest.approx(1.0, abs=0.02)


def test_a_rule(tables, report):
    fitted = rows(tables.exponents, **FIRST).set_index("scaling")
    assert fitted.loc["cbrt", "exponent_p"] == pytest.approx(1 / 3)
    assert fitted.loc["cbrt", "predicted"] == pytest.approx(1 / 2 - 1 / 3, abs=1e-6)
    slope = fitted.loc["cbrt", "exponent"] - fitted.loc["rslora", "exponent"]
    assert slope == pytest.approx(1 / 2 - 1 / 3, abs=1e-3), "gamma alone differs at step 0"
    assert "cube root, γ = α/r^1/3" in report
    slope = fitted.loc["bent", "exponent"] - fitted.loc["rslora", "exponent"]
    bent = math.log((2 + 40) / (8 + 40)) / math.log(8 / 2)
    assert slope == pytest.approx(bent + 1 / 2, abs=1e-3)
    assert fitted.loc["bent", "predicted"] == pytest.approx(bent + 1 / 2, abs=1e-6)
    assert math.isnan(fitted.loc["bent", "exponent_p"]), "it is no power"
    assert "bent, γ = α/(r + 40)" in report


def test_a_statistic(tables, folder, report):
    stored = (folder / "results/recipes/cells").glob("*/probes.parquet")
    found = pd.concat(map(pd.read_parquet, stored)).dropna(subset=["kurtosis", "rms", "m4"])
    assert len(found)
    ratio = found["kurtosis"] / (found["m4"] / found["rms"]) ** 4
    assert ratio.to_numpy() == pytest.approx(1.0, abs=1e-3)
    assert "kurtosis" in set(tables.exponents["stat"])
    assert tables.exponents.loc[tables.exponents["stat"] == "kurtosis", "predicted"].isna().all()
    assert "| adapter output, kurtosis | 1 |" in report
    assert "kurtosis" in (folder / "printed.txt").read_text()


def test_a_data_set_and_a_figure(tables, folder, report):
    assert set(tables.cells["data"]) == {"sums"}
    assert tables.metrics["loss"].notna().any()
    assert "data: sums" in report
    assert (folder / "plots/recipes/seconds_vs_rank.png").stat().st_size > 1_000
    assert "Seconds that a cell took against its rank." in report


def test_a_tracker(tables, folder):
    files = list((folder / "results/recipes/json").glob("*.jsonl"))
    assert len(files) == len(tables.cells)
    config, *steps = map(json.loads, files[0].read_text().splitlines())
    assert config["adapter.init"] == "wide"
    assert [row["step"] for row in steps] == [0, 1, 2]
    assert any(name.startswith("grad_norm/block_00") for name in steps[0])
