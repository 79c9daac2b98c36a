"""``study train`` as users type it: sweeps, skipping, launchers, experiments, mistakes."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import study
from study.config.compose import CONF, parse
from study.sweeps import packs as packing
from study.sweeps import run as sweep
from study.sweeps.cells import plan
from study.sweeps.packs import packs

Cli = Callable[..., Any]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = [
    "model=tiny",
    "train.batch_size=2",
    "data.sequence_length=32",
    "data.heldout=2",
    "train.steps=2",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small(jsonl: Path) -> list[str]:
    return [*SMALL, "data=file", f"data.path={jsonl}", "data.sequence_length=32", "data.heldout=2"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_issues_own_line_and_the_same_line_again(
    study_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = shlex.split(
        "train -m model=tiny adapter.rank=4,8 adapter.scaling=lora,rslora train.steps=2"
    )
    first = study_cli(*line)
    assert first.code == 0, first.err
    assert "4 cells, 0 done, 4 to train in 1 pack" in first.err
    tables = study.load(str(tmp_path / "results/default"))
    assert sorted(zip(tables.cells["rank"], tables.cells["scaling"], strict=True)) == [
        (4.0, "lora"),
        (4.0, "rslora"),
        (8.0, "lora"),
        (8.0, "rslora"),
    ]
    assert set(tables.cells["status"]) == {"complete"}
    assert {path.name for path in tmp_path.iterdir()} == {"results"}, "Hydra leaves nothing behind"

    monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("the base was loaded again"))
    again = study_cli(*line)
    assert again.code == 0
    assert "4 cells, 4 done, nothing to train" in again.err


def test_a_single_cell_without_m(study_cli: Cli, small: list[str], tmp_path: Path) -> None:
    assert study_cli("train", *small, "adapter.rank=3", "name=one").code == 0
    cells = study.load(str(tmp_path / "results/one")).cells
    assert list(cells["rank"]) == [3.0]
    record = json.loads(next((tmp_path / "results/one/cells").glob("*/record.json")).read_text())
    assert record["versions"]["torch"]
    assert record["gamma"] == pytest.approx(16 / 3)
    assert record["config"]["adapter"]["rank"] == 3
    assert record["device"] == "cpu"


def test_a_sweep_extends_what_is_there(study_cli: Cli, small: list[str]) -> None:
    study_cli("train", "-m", *small, "adapter.rank=2,3")
    more = study_cli("train", "-m", *small, "adapter.rank=2,3,4", "seed=0,1")
    assert "6 cells, 2 done, 4 to train" in more.err


def test_groups_are_swept_too(study_cli: Cli, small: list[str], tmp_path: Path) -> None:
    assert study_cli("train", "-m", *small, "optimizer=sgd,adamw", "adapter.rank=2,3").code == 0
    cells = study.load(str(tmp_path / "results/default")).cells
    assert (
        sorted(zip(cells["optimizer"], cells["lr"], strict=True))
        == [("adamw", 1e-4)] * 2 + [("sgd", 1e-2)] * 2
    )


def test_joblib_and_basic_give_the_same_numbers(
    study_cli: Cli, small: list[str], tmp_path: Path
) -> None:
    line = ["train", "-m", *small, "adapter.rank=2,3,4", "pack.max_cells=2"]
    basic = study_cli(*line)
    assert "in 2 packs" in basic.err
    joblib = study_cli(
        *line, "results_dir=parallel", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"
    )
    assert joblib.code == 0, joblib.err
    one, two = (
        study.load(str(tmp_path / folder / "default")) for folder in ("results", "parallel")
    )
    assert list(one.cells["cell_id"]) == list(two.cells["cell_id"])
    assert list(one.metrics["loss"]) == pytest.approx(
        list(two.metrics["loss"]), nan_ok=True, rel=1e-5
    )


def test_a_path_with_spaces_and_quotes_reaches_the_cells(
    study_cli: Cli, small: list[str], jsonl: Path, tmp_path: Path
) -> None:
    odd = [tmp_path / "it's a file.jsonl", tmp_path / 'say "b".jsonl']
    for n, path in enumerate(odd):
        path.write_text("\n".join(jsonl.read_text().splitlines()[n:]))
    values = ",".join(f"'{path!s}'".replace("it's", r"it\'s") for path in odd)
    ran = study_cli("train", "-m", *small, f"data.path={values}")
    assert ran.code == 0, ran.err
    assert set(study.load(str(tmp_path / "results/default")).cells["data"]) == {
        str(path) for path in odd
    }


def test_a_swept_interpolation_follows_its_own_cell(
    study_cli: Cli, small: list[str], tmp_path: Path
) -> None:
    ran = study_cli("train", "-m", *small, "adapter.rank=2,3", "adapter.alpha=5,${adapter.rank}")
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results/default")).cells
    assert set(zip(cells["rank"], cells["alpha"], strict=True)) == {(2, 5), (2, 2), (3, 5), (3, 3)}


@pytest.mark.parametrize(
    "text",
    ["plain", "a b", "it's", 'say "x"', r"back\slash", "end\\", r"\"", "a,b=[c]{d}", "a=${seed}"],
)
def test_cells_are_quoted_in_hydras_grammar(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from study.sweeps.app import job_overrides

    cells, posted = OverridesParser.create().parse_overrides(job_overrides([text], Path(text)))
    assert json.loads(cells.value()) == [text]
    assert "$" not in cells.value(), "the job would resolve it"
    assert posted.value() == text


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_two_steps_on_tiny(
    study_cli: Cli, experiment: str, tmp_path: Path
) -> None:
    sweep = yaml.safe_load((CONF / f"experiment/{experiment}.yaml").read_text())
    swept = sweep["hydra"]["sweeper"]["params"]
    one = {"adapter.alpha": "16", "optimizer.lr": "1e-3"}
    one |= {"adapter.exponent": "0.25", "model.width": "64"}
    one_of_each = [f"{key}={value}" for key, value in one.items() if key in swept]
    ran = study_cli(
        "train",
        f"experiment={experiment}",
        "model=tiny",
        "train.steps=2",
        "adapter.rank=2,3",
        "seed=0",
        *one_of_each,
    )
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results" / experiment)).cells
    assert set(cells["status"]) == {"complete"}
    assert set(cells["rank"]) == {2.0, 3.0}


def test_an_experiment_sweeps_without_m_and_the_command_line_wins(
    study_cli: Cli, tmp_path: Path
) -> None:
    ran = study_cli(
        "train",
        "experiment=quick",
        *SMALL,
        "adapter.rank=5",
        "adapter.scaling=lora,rslora,power",
        "adapter.exponent=0.6",
    )
    assert ran.code == 2, "an exponent for lora is a mistake"
    ran = study_cli("train", "experiment=quick", *SMALL, "adapter.rank=5", "seed=0", "name=mine")
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results/mine")).cells
    assert sorted(cells["scaling"]) == ["lora", "rslora"]
    assert set(cells["rank"]) == {5.0}


def test_a_thousand_cells_are_composed_once(
    study_cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra's 50 ms are paid per choice of groups, not per cell."""
    composed = []
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    original = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_configuration",
        lambda *a, **k: composed.append(1) or original(*a, **k),
    )
    monkeypatch.setattr(packing, "packs", lambda cells, _: pytest.fail(f"{len(cells)} planned"))
    with pytest.raises(pytest.fail.Exception, match="1000 planned"):
        study_cli(
            "train",
            "-m",
            *small,
            "adapter.rank=range(1,101)",
            "seed=range(0,5)",
            "adapter.scaling=lora,rslora",
        )
    assert len(composed) < 10


def test_help_and_config(study_cli: Cli) -> None:
    text = study_cli("train", "--help").out
    for word in (
        "adapter",
        "adafactor | adam | adamw",
        "experiment",
        "study train -m",
        "adapter.rank=8",
    ):
        assert word in text
    assert "adapter:\n  rank: 5" in study_cli("train", "--cfg", "job", "adapter.rank=5").out


BAD = {
    "adapter.scaling=lorra": "unknown adapter.scaling 'lorra': choose from lora, rslora, power",
    "adapter.rank=0": "adapter.rank=0",
    "adapter.rank=-1": "adapter.rank=-1",
    "adapter.rank=abc": "adapter.rank=abc",
    "adapter.alpha=nan": "adapter.alpha=nan",
    "adapter.targets=[q_proj,k_prj]": "unknown target module 'k_prj': choose from",
    "data.path=/no/such/file.jsonl": "/no/such/file.jsonl",
    "data.sequence_length=100000": (
        "data.sequence_length=100000 is longer than tiny allows: give at most 512"
    ),
    "optimizer=adamx": "Could not find 'optimizer/adamx': choose from adafactor, adam, adamw, lion",
    "optimzer=sgd": "optimzer",
    "adapter.rnk=4": "unknown key adapter.rnk: did you mean adapter.rank?",
    "train.steps=many": "train.steps",
    "model=tinny": "choose from hf, shape, smollm2, tiny",
    "adapter.rank=[": "adapter.rank=[",
}


@pytest.mark.parametrize("sweeping", [False, True], ids=["single", "sweep"])
@pytest.mark.parametrize("bad", BAD)
def test_mistakes_get_one_line_and_write_nothing(
    study_cli: Cli,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
    sweeping: bool,
) -> None:
    monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("a model was loaded"))
    before = files(tmp_path)
    ran = study_cli("train", *(["-m", "seed=0,1"] if sweeping else []), *small, bad)
    assert ran.code == 2
    lines = ran.err.strip().splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("study: ")
    assert BAD[bad] in lines[0]
    assert files(tmp_path) == before


def test_two_values_without_m(study_cli: Cli, small: list[str], tmp_path: Path) -> None:
    ran = study_cli("train", *small, "train.warmup=0,1")
    assert ran.code == 2
    assert "add -m to sweep over several values" in ran.err
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"context": "a", "target": "b"}\n{"context": "a"', "line 2"),
        ('{"context": "a", "target": "b"}\n{"context": "a"}\n', "line 2"),
        ("", "empty|no example"),
    ],
    ids=["broken", "key", "empty"],
)
def test_bad_data_names_the_line(
    study_cli: Cli, small: list[str], tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    ran = study_cli("train", *small, f"data.path={path}")
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert re.search(says, ran.err), ran.err
    assert not (tmp_path / "results").exists()


def test_a_probe_step_after_the_end_is_said(study_cli: Cli, small: list[str]) -> None:
    ran = study_cli("train", *small, "probes.steps=[0,2,7,9]")
    assert ran.code == 0, ran.err
    notice = "probes.steps: not measured at 7, 9, after the last step (train.steps=2)"
    assert ran.err.splitlines().count(notice) == 1
    assert "not measured" not in study_cli("train", *small, "probes.steps=[0,2]").err


def test_unwritable_results(
    study_cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "taken").write_text("a file")
    ran = study_cli("train", *small, "results_dir=taken/here")
    assert ran.code == 2
    assert re.fullmatch(
        r"study: results_dir=taken/here can't be written .*Not a directory.*", ran.err.strip()
    )


def test_a_failing_cell_is_recorded_and_the_others_go_on(
    study_cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sweep.train

    def train(base: Any, corpus: Any, runs: Any, *more: Any) -> Any:
        if runs[0].config.adapter.rank == 3:
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
    ran = study_cli(
        "train",
        "-m",
        *small,
        "optimizer=sgd",
        "adapter.alpha=1e10",
        "optimizer.lr=1e15,1e-24",
        "pack.fold=2",
        "train.steps=5",
    )
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results/default")).cells.set_index("lr")
    assert dict(cells["status"]) == {1e15: "diverged", 1e-24: "complete"}
    assert "1 complete, 1 diverged" in study_cli("status", "results/default").out


def test_packs_share_what_they_must(small: list[str], tmp_path: Path, jsonl: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        build = lambda *o: parse(compose("config", overrides=[*small, *o]))  # noqa: E731
        configs = [
            build(f"adapter.rank={r}", f"seed={s}", f"optimizer={o}")
            for r in (8, 2)
            for s in (0, 1)
            for o in ("sgd", "adamw")
        ]
        odd = [build("train.steps=3"), build("precision=bf16"), build("adapter.targets=mlp")]
        capped = [build(f"adapter.rank={r}", "pack.max_cells=2") for r in (16, 4, 8, 2)]
    groups = packs(plan([*configs, *odd]))
    assert sorted(len(group) for group in groups) == [1, 1, 1, 8]
    assert [c.config.adapter.rank for c in max(groups, key=len)] == [2] * 4 + [8] * 4
    dealt = [[c.config.adapter.rank for c in pack] for pack in packs(plan(capped))]
    assert dealt == [[2, 8], [4, 16]], "each pack gets low and high ranks"


def test_every_experiment_has_enough_seeds_for_a_verdict() -> None:
    for experiment in EXPERIMENTS:
        config = yaml.safe_load((CONF / f"experiment/{experiment}.yaml").read_text())
        seeds = str(config["hydra"]["sweeper"]["params"].get("seed", "")).split(",")
        assert len(set(seeds)) >= 3, experiment
