"""``study train`` as users type it: sweeps, skipping, launchers, experiments, mistakes."""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml

import study
from study.config.compose import CONF, expected_best
from study.store import load_cells, load_records
from study.sweeps import cells as planning
from study.sweeps import run as sweep

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = ["model=tiny", "train.batch_size=2", "data.sequence_length=32", "data.heldout=2"]
SMALL += ["train.steps=2"]
pytestmark = pytest.mark.usefixtures("here")


def test_a_sweep_trains_each_cell_once_with_its_own_values(works, short, monkeypatch):
    """Of groups and interpolations, too."""
    line = ["train", "-m", *short]
    swept = ("optimizer=sgd,adamw", "adapter.rank=2,3", "adapter.alpha=5,${adapter.rank}")
    assert "8 cells, 0 done, 8 to train in 1 pack" in works(*line, *swept).err
    cells = load_cells("results/default")
    found = set(zip(cells["optimizer"], cells["lr"], cells["rank"], cells["alpha"], strict=True))
    assert found == {
        (optimizer, rate, rank, alpha)
        for optimizer, rate in (("adamw", 1e-4), ("sgd", 1e-2))
        for rank, alpha in ((2, 5), (2, 2), (3, 5), (3, 3))
    }
    assert {path.name for path in Path().iterdir()} == {"results"}, "Hydra leaves nothing behind"
    more = works(*line, "adapter.rank=2,3,4", "adapter.alpha=5")
    assert "3 cells, 2 done, 1 to train" in more.err
    monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("the base was loaded again"))
    killed = Path("results/default/sweep-1.json")
    killed.touch()  # as by a sweep that was killed after its last cell
    assert "8 cells, 8 done, nothing to train" in works(*line, *swept).err
    assert not killed.exists()


def test_a_single_cell_without_m_imports_only_what_it_uses(short):
    """transformers' optimizers import PEFT, bitsandbytes and torch's compiler: over a second."""
    command = ["study", "train", *short, "adapter.rank=3", "name=one"]
    unused = {"peft", "bitsandbytes", "pytorch_optimizer", "matplotlib"}
    unused |= {"torch._inductor.compile_fx"}
    code = (
        f"import sys; sys.argv = {command}; from study.cli import main; main();"
        f"print({unused} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"
    [record] = load_records(Path("results/one"))
    assert record["versions"]["torch"]
    assert record["gamma"] == pytest.approx(16 / 3)
    assert record["config"]["adapter"]["rank"] == 3
    assert (record["device"], record["status"]) == ("cpu", "complete")


def test_a_path_with_spaces_and_quotes_reaches_the_cells(works, short, jsonl, tmp_path):
    odd = [tmp_path / "it's a file.jsonl", tmp_path / 'say "b".jsonl']
    for n, path in enumerate(odd):
        path.write_text("\n".join(jsonl.read_text().splitlines()[n:]))
    values = ",".join(f"'{path!s}'".replace("it's", r"it\'s") for path in odd)
    works("train", "-m", *short, f"data.path={values}")
    assert set(load_cells("results/default")["data"]) == {path.name for path in odd}


def test_an_interpolation_in_the_sweep_of_an_experiment_is_each_cells_own(works):
    """Hydra resolves the sweeper's settings once, for the configuration without overrides."""
    name = "learning_rate_rho_tiny"
    one_of_each = ("seed=0", "adapter.alpha=4", "adapter.scaling=0,lora", "probes.steps=null")
    small = ("train.steps=1", "adapter.rank=2,32", "adapter.targets=[down_proj]")
    works("train", f"experiment={name}", *small, *one_of_each)
    cells = load_cells(f"results/{name}")
    for rank, p in product((2, 32), (0, 1)):
        best = expected_best(4.0 * rank**-p, rank, 1, 85, 9.8, 10)
        own = cells[(cells["rank"] == rank) & ((cells["scaling"] == "lora") == p)]
        rates = [best * 2.0**k for k in range(-2, 3)]
        assert sorted(own["lr"]) == pytest.approx(rates, rel=5e-3)
        assert all(lr == float(f"{lr:.2e}") for lr in own["lr"])


def test_every_experiment_runs_two_steps_on_tiny(cell, tmp_path):
    """With its first rule, optimizer and setting."""
    configs = []
    for experiment in EXPERIMENTS:
        text = (CONF / f"experiment/{experiment}.yaml").read_text()
        swept = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
        first = {key: str(values).partition(",")[0] for key, values in swept.items()}
        first.pop("model.path", None)  # tiny reads none
        first |= {"adapter.rank": "2", "optimizer.lr": "1e-3", "results_dir": tmp_path}
        if "targets" not in text or ".layers" in text:  # of which tiny has two
            first["adapter.targets"] = "[down_proj]"  # fewer layers to measure
        choices = [f"{key}={value}" for key, value in first.items()]
        configs.append(cell(f"experiment={experiment}", *choices, *SMALL))
    with sweep.Worker() as worker:
        for planned in planning.plan(configs):
            sweep.run([planned], worker)
    for experiment in EXPERIMENTS:
        assert [*load_cells(tmp_path / experiment)["status"]] == ["complete"], experiment


@pytest.mark.usefixtures("few_figures")
def test_an_experiment_sweeps_without_m_and_the_command_line_wins(works, refused):
    """A cell keeps what its experiment expects, and the report reads it there."""
    line = ("train", "experiment=quick", *SMALL, "adapter.rank=5")
    refused(*line, "adapter.scaling=lora,rslora,power", "adapter.exponent=0.6")
    ran = works(*line, "seed=0", "probes.steps=[0,1]", "name=mine")
    assert "first answer" not in ran.err, "one seed has no other answer"
    cells = load_cells("results/mine")
    assert sorted(cells["scaling"]) == ["lora", "rslora"]
    assert set(cells["rank"]) == {5.0}
    stated = yaml.safe_load((CONF / "experiment/quick.yaml").read_text())["expects"]
    for record in load_records(Path("results/mine")):
        pairs = zip(record["expects"], stated, strict=True)
        assert [{key: one[key] for key in about} for one, about in pairs] == stated
    works("report", "results/mine")
    assert "What was expected, and what was measured?" in Path("results/mine/report.md").read_text()


def test_a_failing_cell_is_recorded_and_the_others_go_on(study_cli, short, monkeypatch):
    original = sweep.train

    def train(base, corpus, cells, *more):
        if any(cell.adapter.rank == 3 for cell in cells):
            yield next(original(base, corpus, cells, *more))
            raise RuntimeError("out of luck\nand more")
        yield from original(base, corpus, cells, *more)

    monkeypatch.setattr(sweep, "train", train)
    ran = study_cli("train", "-m", *short, "adapter.rank=2,3,4")
    assert ran.code == 2
    assert "1 of 3 cells failed" in ran.err
    assert "RuntimeError: out of luck" in ran.err
    cells = load_cells("results/default").set_index("rank")
    assert dict(cells["status"]) == {2.0: "complete", 3.0: "failed", 4.0: "complete"}
    assert cells.loc[3.0, "error"] == "RuntimeError: out of luck"
    [log] = Path("results/default/cells").glob("*/error.log")
    assert log.parent.name == cells.loc[3.0, "cell_id"]
    assert f"(traceback in {log})" in ran.err
    assert re.search(r'File ".*", line \d+, in train\n.*raise.*\n.*and more', log.read_text(), re.S)
    monkeypatch.setattr(sweep, "train", original)
    assert (
        "3 cells, 2 done, 1 to train" in study_cli("train", "-m", *short, "adapter.rank=2,3,4").err
    )
    assert not log.exists(), "the cell has no error any more"


def test_diverged_and_stuck_cells_are_done_marked_and_left_out_of_fits(works, short):
    """At learning rates that are far too large."""
    line = ["train", "-m", *short, "optimizer=sgd", "adapter.scaling=rslora", "adapter.rank=2,4"]
    line += ["train.steps=6", "train.eval_every=2", "probes.steps=[0,1,2,3,4,5,6,7,9]"]
    line += ["name=large", "optimizer.lr=1e4,1e30"]
    notice = "probes.steps: not measured at 7, 9, after the last step (train.steps=6)"
    assert works(*line).err.splitlines().count(notice) == 1
    tables = study.load("results/large")
    found = set(zip(tables.cells["lr"], tables.cells["status"], strict=True))
    assert found == {(1e4, "stuck"), (1e30, "diverged")}
    stuck = tables.cells[tables.cells["status"] == "stuck"]
    for cell, step in zip(stuck["cell_id"], stuck["stuck_step"], strict=True):
        rows = tables.metrics[tables.metrics["cell_id"] == cell].set_index("step")
        assert (rows.loc[step:5, "grad_norm"] == 0).all()
        assert rows.loc[step - 1, "grad_norm"] > 0
        losses = rows["eval_loss"]
        assert losses.iloc[-1] < losses.iloc[0], "it looks like an improvement"

    assert "4 cells, 4 done, nothing to train" in works(*line).err
    shown = works("status", "results/large").out
    assert "2 diverged" in shown
    assert "2 stuck" in shown
    assert f"no gradient from step {stuck['stuck_step'].iloc[0]:.0f}" in shown

    # Its frozen weights still have outputs and norms, on which a line could be fitted.
    last = stuck["stuck_step"].max() - 1
    outputs = tables.probes[tables.probes["site"] == "adapter_out"]
    assert outputs["step"].max() > last
    assert tables.exponents["step"].max() == last
    assert tables.losses.empty or tables.losses["loss"].isna().all()


def test_the_last_override_of_a_swept_key_wins_and_experiments_are_swept_apart(study_cli, here):
    words = ["train", "-m", "experiment=quick", "model=tiny", "--plan"]
    of_one_seed = study_cli(*words, "seed=7").err.splitlines()[0]
    assert study_cli(*words, "++seed=7").err.splitlines()[0] == of_one_seed
    assert study_cli(*words).err.splitlines()[0] != of_one_seed
    both = study_cli("train", "-m", "experiment=quick,paper_fig2", "model=tiny", "--plan")
    assert both.code == 2
    assert "run study train once for each experiment" in both.err
