"""``study train`` as users type it: sweeps, skipping, launchers, experiments, mistakes."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import study
from study.config.compose import CONF, expected_best
from study.store import load_records
from study.sweeps import run as sweep

Cli = Callable[..., Any]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = ["model=tiny", "train.batch_size=2", "data.sequence_length=32", "data.heldout=2"]
SMALL += ["train.steps=2"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small(jsonl: Path) -> list[str]:
    return [*SMALL, "data=file", f"data.path={jsonl}"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_same_line_again_trains_nothing_and_a_longer_one_the_rest(
    study_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["train", "-m", "model=tiny", "adapter.rank=4,8", "train.steps=2"]
    first = study_cli(*line, "adapter.scaling=lora,rslora")
    assert first.code == 0, first.err
    assert "4 cells, 0 done, 4 to train in 1 pack" in first.err
    cells = study.load("results/default").cells
    found = set(zip(cells["rank"], cells["scaling"], cells["status"], strict=True))
    assert found == {(r, rule, "complete") for r in (4.0, 8.0) for rule in ("lora", "rslora")}
    assert {path.name for path in tmp_path.iterdir()} == {"results"}, "Hydra leaves nothing behind"
    more = study_cli(*line, "adapter.scaling=lora,rslora,0.75")
    assert "6 cells, 4 done, 2 to train" in more.err
    monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("the base was loaded again"))
    again = study_cli(*line, "adapter.scaling=lora,rslora")
    assert (again.code, "4 cells, 4 done, nothing to train" in again.err) == (0, True)


def test_a_single_cell_without_m_imports_only_what_it_uses(
    small: list[str], tmp_path: Path
) -> None:
    """transformers' optimizers import PEFT, bitsandbytes and torch's compiler: over a second."""
    command = ["study", "train", *small, "adapter.rank=3", "name=one"]
    unused = {"peft", "bitsandbytes", "pytorch_optimizer", "matplotlib"}
    unused |= {"torch._inductor.compile_fx"}
    code = (
        f"import sys; sys.argv = {command}; from study.cli import main; main();"
        f"print({unused} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"
    [record] = load_records(tmp_path / "results/one")
    assert record["versions"]["torch"]
    assert record["gamma"] == pytest.approx(16 / 3)
    assert record["config"]["adapter"]["rank"] == 3
    assert (record["device"], record["status"]) == ("cpu", "complete")


def test_a_path_with_spaces_and_quotes_reaches_the_cells(
    study_cli: Cli, small: list[str], jsonl: Path, tmp_path: Path
) -> None:
    odd = [tmp_path / "it's a file.jsonl", tmp_path / 'say "b".jsonl']
    for n, path in enumerate(odd):
        path.write_text("\n".join(jsonl.read_text().splitlines()[n:]))
    values = ",".join(f"'{path!s}'".replace("it's", r"it\'s") for path in odd)
    ran = study_cli("train", "-m", *small, f"data.path={values}")
    assert ran.code == 0, ran.err
    assert set(study.load("results/default").cells["data"]) == {str(path) for path in odd}


def test_groups_and_interpolations_are_swept_and_each_cell_resolves_its_own(
    study_cli: Cli, small: list[str], tmp_path: Path
) -> None:
    swept = ("optimizer=sgd,adamw", "adapter.rank=2,3", "adapter.alpha=5,${adapter.rank}")
    ran = study_cli("train", "-m", *small, *swept)
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results/default")).cells
    found = set(zip(cells["optimizer"], cells["lr"], cells["rank"], cells["alpha"], strict=True))
    assert found == {
        (optimizer, rate, rank, alpha)
        for optimizer, rate in (("adamw", 1e-4), ("sgd", 1e-2))
        for rank, alpha in ((2, 5), (2, 2), (3, 5), (3, 3))
    }


def test_an_interpolation_in_the_sweep_of_an_experiment_is_each_cells_own(
    study_cli: Cli, tmp_path: Path
) -> None:
    """Hydra resolves the sweeper's settings once, for the configuration without overrides."""
    name = "learning_rate_rho_tiny"
    one_of_each = ("seed=0", "adapter.alpha=4", "adapter.scaling=0", "probes.steps=null")
    small = (f"experiment={name}", "train.steps=1", "adapter.rank=2,32", *one_of_each)
    assert study_cli("train", *small).code == 0
    cells = study.load(str(tmp_path / "results" / name)).cells
    for rank in (2, 32):
        best = expected_best(4.0, rank, 1, 85, 9.8, 10)
        own = sorted(cells.loc[cells["rank"] == rank, "lr"])
        assert own == pytest.approx([best * 2.0**k for k in range(-2, 3)], rel=5e-3)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_two_steps_on_tiny(
    study_cli: Cli, experiment: str, tmp_path: Path
) -> None:
    sweep = yaml.safe_load((CONF / f"experiment/{experiment}.yaml").read_text())
    swept = sweep["hydra"]["sweeper"]["params"]
    one = {"adapter.alpha": "16", "optimizer.lr": "1e-3"}
    one |= {"adapter.exponent": "0.25", "model.width": "64"}
    one_of_each = [f"{key}={value}" for key, value in one.items() if key in swept]
    small = (f"experiment={experiment}", "model=tiny", "train.steps=2", "adapter.rank=2", "seed=0")
    ran = study_cli("train", *small, "train.batch_size=2", *one_of_each)
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results" / experiment)).cells
    assert set(cells["status"]) == {"complete"}
    assert set(cells["rank"]) == {2.0}


def test_an_experiment_sweeps_without_m_and_the_command_line_wins(
    study_cli: Cli, tmp_path: Path
) -> None:
    """A cell keeps what its experiment expects, and the report reads it there."""
    line = ("train", "experiment=quick", *SMALL, "adapter.rank=5")
    ran = study_cli(*line, "adapter.scaling=lora,rslora,power", "adapter.exponent=0.6")
    assert ran.code == 2, "an exponent for lora is a mistake"
    ran = study_cli(*line, "seed=0", "probes.steps=[0,1]", "name=mine")
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results/mine")).cells
    assert sorted(cells["scaling"]) == ["lora", "rslora"]
    assert set(cells["rank"]) == {5.0}
    stated = yaml.safe_load((CONF / "experiment/quick.yaml").read_text())["expects"]
    for record in load_records(tmp_path / "results/mine"):
        pairs = zip(record["expects"], stated, strict=True)
        assert [{key: one[key] for key in about} for one, about in pairs] == stated
    assert study_cli("report", "results/mine").code == 0
    assert (
        "What was expected, and what was measured?"
        in (tmp_path / "results/mine/report.md").read_text()
    )


def test_help_and_config(study_cli: Cli) -> None:
    text = study_cli("train", "--help").out
    words = ("adafactor | adam | adamw", "experiment", "study train -m", "adapter.rank=8")
    assert all(word in text for word in words)
    assert "adapter:\n  rank: 5" in study_cli("train", "--cfg", "job", "adapter.rank=5").out
    ran = study_cli("trian")
    assert (ran.code, "unknown command trian: did you mean train?" in ran.err) == (2, True)


# Of values that are wrong by themselves, and of keys: tests/config.
BAD = {
    "adapter.scaling=lorra": "unknown adapter.scaling 'lorra': choose from lora, rslora, power",
    "adapter.targets=[q_proj,k_prj]": "unknown target module 'k_prj': choose from",
    "data.path=/no/such/file.jsonl": "/no/such/file.jsonl",
    "data.sequence_length=100000": (
        "data.sequence_length=100000 is longer than tiny allows: give at most 512"
    ),
    "model=tinny": "choose from gemma3, hf, shape, small, smollm2, tiny",
    "adapter.rank=[": "adapter.rank=[",
}


@pytest.mark.parametrize("bad", BAD)
def test_mistakes_get_one_line_and_write_nothing(
    study_cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("a model was loaded"))
    before = files(tmp_path)
    for sweeping in ([], ["-m", "seed=0,1"]):
        ran = study_cli("train", *sweeping, *small, bad)
        assert ran.code == 2
        [line] = ran.err.strip().splitlines()
        assert line.startswith("study: ")
        assert BAD[bad] in line
    assert files(tmp_path) == before


def test_a_failing_cell_is_recorded_and_the_others_go_on(
    study_cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sweep.train

    def train(base: Any, corpus: Any, runs: Any, *more: Any) -> Any:
        if any(run.config.adapter.rank == 3 for run in runs):
            yield next(original(base, corpus, runs, *more))
            raise RuntimeError("out of luck\nand more")
        yield from original(base, corpus, runs, *more)

    monkeypatch.setattr(sweep, "train", train)
    ran = study_cli("train", "-m", *small, "adapter.rank=2,3,4")
    assert ran.code == 2
    assert "1 of 3 cells failed" in ran.err
    assert "RuntimeError: out of luck" in ran.err
    cells = study.load(str(tmp_path / "results/default")).cells.set_index("rank")
    assert dict(cells["status"]) == {2.0: "complete", 3.0: "failed", 4.0: "complete"}
    assert cells.loc[3.0, "error"] == "RuntimeError: out of luck"
    [log] = (tmp_path / "results/default/cells").glob("*/error.log")
    assert log.parent.name == cells.loc[3.0, "cell_id"]
    assert f"(traceback in {log.relative_to(tmp_path)})" in ran.err
    assert re.search(r'File ".*", line \d+, in train\n.*raise.*\n.*and more', log.read_text(), re.S)
    monkeypatch.setattr(sweep, "train", original)
    assert (
        "3 cells, 2 done, 1 to train" in study_cli("train", "-m", *small, "adapter.rank=2,3,4").err
    )
    assert not log.exists(), "the cell has no error any more"


def test_diverged_cells_are_recorded(study_cli: Cli, small: list[str], tmp_path: Path) -> None:
    large = ("optimizer=sgd", "adapter.alpha=1e10", "optimizer.lr=1e15,1e-24", "pack.fold=2")
    ran = study_cli("train", "-m", *small, *large, "train.steps=5", "probes.steps=[0,2,7,9]")
    assert ran.code == 0, ran.err
    notice = "probes.steps: not measured at 7, 9, after the last step (train.steps=5)"
    assert ran.err.splitlines().count(notice) == 1
    cells = study.load(str(tmp_path / "results/default")).cells.set_index("lr")
    assert dict(cells["status"]) == {1e15: "diverged", 1e-24: "complete"}
    assert "1 complete, 1 diverged" in study_cli("status", "results/default").out
