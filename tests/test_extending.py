"""The recipes of docs/extending.md: each adds one thing and takes it through every command."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import study

ROOT = Path(__file__).parents[1]
SMALL = [
    "model=tiny",
    "train.steps=2",
    "train.batch_size=2",
    "data.heldout=2",
    "probes.steps=[0,1]",
]
SWEEP = ["adapter.rank=2,4,8", "adapter.scaling=lora,rslora", "seed=0,1,2", "optimizer.lr=1e-3"]
COMMANDS = """
import sys, {module}
from study import cli
for line in {lines!r}:
    sys.argv = ["study", *line]
    try:
        cli.main()
    except SystemExit as leaving:
        if leaving.code:
            raise
"""


def recipe(heading: str) -> dict[str, str]:
    """The code blocks under a heading: ``python``, and each YAML file by its path in ``conf/``."""
    text = (ROOT / "docs/extending.md").read_text()
    section = text[text.index(f"## {heading}\n") :].split("\n## ")[0]
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", section, re.DOTALL)
    return {
        body.splitlines()[0].removeprefix("# conf/") if kind == "yaml" else kind: body
        for kind, body in blocks
    }


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., study.store.StudyTables]:
    """Run a recipe through every command in a process of its own; returns the study's tables."""

    def commands(heading: str, *overrides: str) -> study.store.StudyTables:
        blocks = recipe(heading)
        (tmp_path / "recipe_module.py").write_text(blocks.pop("python"))
        for name, body in blocks.items():
            path = tmp_path / "conf" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body)
        searched = [f"hydra.searchpath=[file://{tmp_path}/conf]"] if blocks else []
        lines = [
            ["train", "-m", *searched, *SMALL, *SWEEP, *overrides, "name=recipe"],
            ["analyze", "results/recipe"],
            ["figures", "results/recipe"],
            ["report", "results/recipe"],
            ["dashboard", "results/recipe", "--export", "recipe.html"],
        ]
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS.format(module="recipe_module", lines=lines)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return study.load(str(tmp_path / "results/recipe"))

    return commands


def report(tmp_path: Path) -> str:
    return (tmp_path / "results/recipe/report.md").read_text()


def first_gradient_norms(tables: study.store.StudyTables) -> pd.DataFrame:
    rows = tables.exponents
    here = (rows["site"] == "adapter_grad") & (rows["layer"] == "model") & (rows["step"] == 0)
    return rows[here & (rows["stat"] == "norm")]


Run = Callable[..., study.store.StudyTables]


def test_an_optimizer(run: Run, tmp_path: Path) -> None:
    tables = run("An optimizer", "optimizer=signum")
    assert set(tables.cells["optimizer"]) == {"signum"}
    assert set(tables.cells["momentum"]) == {0.9}
    descent = tables.stable[
        (tables.stable["site"] == "adapter_update") & (tables.stable["step"] == 0)
    ]
    assert descent["limit"].dropna().eq(1.0).all(), "a sign-like rule: p* of descent is 1"
    assert len(descent["limit"].dropna())
    assert "Signum" in report(tmp_path)


def test_an_init(run: Run, tmp_path: Path) -> None:
    tables = run("An init", "adapter.init=wide")
    assert set(tables.cells["init"]) == {"wide"}
    assert first_gradient_norms(tables)["predicted"].notna().all()
    drawn = tables.probes[(tables.probes["site"] == "A") & (tables.probes["step"] == 0)]
    expected = (3 / drawn["d_in"]) ** 0.5
    assert (drawn["rms"] / expected).mean() == pytest.approx(1.0, abs=0.02)


def test_a_rule(run: Run, tmp_path: Path) -> None:
    tables = run("A scaling rule", "adapter.scaling=rslora,cbrt")
    fitted = first_gradient_norms(tables).set_index("scaling")
    assert fitted.loc["cbrt", "exponent_p"] == pytest.approx(1 / 3)
    assert fitted.loc["cbrt", "predicted"] == pytest.approx(1 / 2 - 1 / 3, abs=1e-6)
    slope = fitted.loc["cbrt", "exponent"] - fitted.loc["rslora", "exponent"]
    assert slope == pytest.approx(1 / 2 - 1 / 3, abs=1e-3), "gamma alone differs at step 0"
    assert "cube root, γ = α/r^1/3" in report(tmp_path)


def test_a_statistic(run: Run, tmp_path: Path) -> None:
    tables = run("A statistic", "probes.stats=[all,kurtosis]")
    stored = (tmp_path / "results/recipe/cells").glob("*/probes.parquet")
    rows = pd.concat(map(pd.read_parquet, stored)).dropna(subset=["kurtosis", "rms", "m4"])
    assert len(rows)
    ratio = rows["kurtosis"] / (rows["m4"] / rows["rms"]) ** 4
    assert ratio.to_numpy() == pytest.approx(1.0, abs=1e-3)
    assert "kurtosis" in set(tables.exponents["stat"])
    assert tables.exponents.loc[tables.exponents["stat"] == "kurtosis", "predicted"].isna().all()


def test_a_data_set(run: Run, tmp_path: Path) -> None:
    tables = run("A data set", "data=sums")
    assert set(tables.cells["data"]) == {"sums"}
    assert tables.metrics["loss"].notna().any()
    assert "data: sums" in report(tmp_path)


def test_a_figure(run: Run, tmp_path: Path) -> None:
    run("A figure")
    picture = tmp_path / "plots/recipe/seconds_vs_rank.png"
    assert picture.stat().st_size > 5_000
    assert "Seconds that a cell took against its rank." in report(tmp_path)


def test_every_recipe_of_the_page_is_tested() -> None:
    text = (ROOT / "docs/extending.md").read_text()
    tested = re.findall(r'run\("([^"]+)"', Path(__file__).read_text())
    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == set(tested)
