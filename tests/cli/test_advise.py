"""``study advise``: what it prints for the configurations of other tools, and whether it is so."""

import json
import math
import re
import shlex
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from research import law
from study.analysis.advice import advise as advise_runs
from study.analysis.advice import committed
from study.analysis.law import Setting, log_rate, short_model
from study.analysis.rates import best_rates_of
from study.cli.given import SYMPTOMS
from study.store import cell_folders
from study.store.tables import load_measured

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
MEASURED = str(ROOT / "results/reference/paper_learning_rate")


@pytest.fixture
def advise(study_cli):
    """The answer as JSON, after its text was checked: at most 14 lines, with the lines to paste."""

    def ask(*arguments):
        ran = study_cli("advise", *arguments)
        assert ran.code == 0, ran.err
        lines = ran.out.splitlines()
        assert len(lines) <= 14
        assert any(line.startswith("Sure?") for line in lines)
        text = study_cli("advise", *arguments, "--json").out
        namespace = lambda values: SimpleNamespace(**values)  # noqa: E731
        found = json.loads(text, object_hook=namespace, parse_constant=pytest.fail)
        assert found.schema == 4
        assert {*" ".join(found.paste).split()} <= {*ran.out.split()}
        assert found.why[0] == found.evidence[0].words
        return found

    return ask


AXOLOTL = {"base_model": "org/m", "adapter": "lora", "lora_target_linear": True, "lora_r": 16}
AXOLOTL |= {"lora_alpha": 32, "learning_rate": 2e-4, "micro_batch_size": 4, "bf16": False}
AXOLOTL |= {"datasets": [{"path": "a.jsonl", "type": "alpaca"}]}
PEFT = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 8, "lora_alpha": 16}


@pytest.fixture
def axolotl(tmp_path):
    def write(name, **keys):
        (tmp_path / name).write_text(json.dumps(AXOLOTL | keys))
        return str(tmp_path / name)

    return write


@pytest.fixture
def peft(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT))
    return tmp_path / "adapter_config.json"


def rate(advice):
    """The rate to set, which is that of the file where the interval holds it."""
    return float(advice.advice.lr.value)


def best(advice):
    """The rate of the strongest evidence."""
    return float(advice.evidence[0].rate.value)


def test_the_law_is_at_most_60_numbers_of_the_committed_rates():
    """``make figures`` fits it. All studies take too long to read here: their number is checked."""

    def numbers(part):
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return sum(map(numbers, parts)) + isinstance(part, int | float)

    known = committed()
    of_law = "law", "spread", "width", "models", "distance"
    assert numbers([known[name] for name in of_law]) <= 60
    own = best_rates_of(load_measured(Path(MEASURED)), "own")
    assert len(own) == 4
    rounded = load_measured(Path(MEASURED))
    rounded.cells["precision"] = "bf16"
    assert best_rates_of(rounded, "own").equals(own), "a study in bf16 alone counts as well"
    assert known["rows"]["studies"] == len({*law.FITTED, *law.published()["source"]})


def rates_of_12_models(truth, error):
    """Rates that a law made, of four studies, with an ``error`` of each. Half of one study lies at
    an edge."""
    draw, rows = np.random.default_rng(0), []
    for model in range(12):
        for rank, steps in product((1, 4, 16, 64, 256), (32, 512)):
            run = Setting(rank, 16.0, ("lora", "rslora")[model % 2], "adamw", steps=steps)
            rate = log_rate(truth, run.facts(), 0.5 * np.sin(model))
            rate += error[model % 4] * draw.normal()
            is_high = model == 0 and rate > -7.0
            about = {"model": f"m{model}", "source": f"s{model % 4}", "grid": 0.0}
            about |= {"log_lr": min(rate, -7.0) if is_high else rate}
            rows.append(run.facts() | about | {"edge": "highest" if is_high else ""})
    return pd.DataFrame(rows)


TRUTH = {name: value for name, (value, _) in committed()["law"].items()} | {"c": 3.0}


def test_the_fit_finds_a_law_that_made_the_rates():
    truth, rows = TRUTH, rates_of_12_models(TRUTH, [0.05] * 4)
    held = {name: truth[name] for name in truth if name not in ("base", "steps", "c")}
    found = law.fit(rows, held)
    for name in ("c", "steps"):
        assert found.law[name] == pytest.approx(truth[name], abs=4 * found.error[name])
    assert found.error["c"] < 0.3
    assert found.spread["scatter"] == pytest.approx(0.05, rel=0.3)


def test_a_study_that_is_left_out_does_not_tell_how_far_rates_spread(monkeypatch):
    rows = rates_of_12_models(TRUTH, [0.05, 0.05, 0.05, 1.0])
    monkeypatch.setattr(law, "best_rates", lambda: rows)
    left_out = law.without.__wrapped__
    assert left_out("s3")["spread"]["scatter"] == pytest.approx(0.05, rel=0.3)
    assert left_out("s2")["spread"]["scatter"] > 0.2


def test_intervals_hold_in_our_studies_and_in_those_of_others():
    """Each study counts once: the one with the most points is the least of its kind."""
    draw, rows = np.random.default_rng(0), []
    for source, (is_theirs, error) in enumerate([(False, 1.0), (True, 3.0)] * 20):
        off = error * draw.normal(size=2000 if source < 2 else 20) / (10 if source < 2 else 1)
        table = {"source": source, "is_theirs": is_theirs, "value": off, "measured": 0.0}
        rows.append(pd.DataFrame({**table, "half": 1.0}))
    found = pd.concat(rows, ignore_index=True)
    holds = found["value"].abs() <= law.width(found)
    ours, theirs = (
        holds.groupby([found["is_theirs"], found["source"]]).mean().groupby(level=0).mean()
    )
    assert theirs == pytest.approx(0.9, abs=0.01)
    assert ours > theirs


HEAVY = {"torch", "matplotlib", "hydra", "study.dashboard", "study.figures", "study.report"}


@pytest.mark.parametrize(
    ("words", "says", "others"),
    [
        (["advise", "--rank", "64"], "Sure?", {"pyarrow", "pandas", "pydantic", "rich"}),
        (["advise", str(EXAMPLES / "axolotl.yml"), "--rank", "64"], "Sure?", {"rich"}),
        (["--help"], "serve-check", {"pyarrow", "pandas", "pydantic", "rich", "numpy"}),
        (["advise", "--help"], "--symptom", {"pyarrow", "pandas", "pydantic", "rich"}),
    ],
    ids=["options", "file", "help", "help of advise"],
)
def test_advice_and_help_load_no_plots_no_hydra_and_no_views(words, says, others):
    """Importers read rows of data, so a file loads pyarrow too."""
    code = "import sys; from study.cli import main; main(); print(*sys.modules, file=sys.stderr)"
    line = [sys.executable, "-c", code, *words]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert says in ran.stdout
    assert (HEAVY | others) & {*ran.stderr.split()} == set()


def test_a_rate_moves_by_the_law_and_is_pasted(advise):
    """rsLoRA from rank 16 to 256 at alpha 16: between equal descents and half of equal outputs."""
    found = advise(str(EXAMPLES / "axolotl.yml"), "--rank", "256")
    descent, output = 16 / 4, math.sqrt(256 * 265 / (16 * 25)) / 4
    assert 2e-4 / descent < rate(found) < 2e-4 / output**0.5
    assert found.advice.lr.low < rate(found) < found.advice.lr.high < 2e-4
    assert [each.rests for each in found.evidence] == ["run", "law"]
    assert found.paste[-1] == f"learning_rate: {rate(found):.1e}"
    assert "at 500 steps (assumed), by the law, if your rate is the best one of" in found.why[0]
    assert found.check.then.endswith("--rank 256 --steps STEPS --study results/check")
    crossover = advise(str(EXAMPLES / "axolotl.yml"), "--rank", "256", "--rule", "crossover")
    assert 0.7 < rate(crossover) / 2e-4 < 1.1, "one rate at every rank"
    assert crossover.paste[1] == "lora_alpha: 111", "gamma r of rank 256, with that of rank 16"


@pytest.mark.parametrize(
    ("schedule", "low", "high"), [("cosine", 0.999, 1.001), ("constant", 0.3, 0.9)]
)
def test_more_steps_keep_the_rate_under_a_schedule_that_decays(
    advise, axolotl, schedule, low, high
):
    """In left-out studies under such schedules the law alone is worse than the old rate."""
    old, new = (
        axolotl(f"{steps}.yml", max_steps=steps, lr_scheduler=schedule) for steps in (500, 2000)
    )
    found = advise(old, new)
    assert low <= best(found) / 2e-4 <= high
    said = any("steps does not change the rate" in line for line in found.why)
    assert said == (schedule == "cosine")
    assert ("Factors" in str(found.why)) == (schedule == "constant")
    assert found.evidence[0].rate.low < best(found) < found.evidence[0].rate.high


def test_a_study_of_the_users_model_counts_most(advise):
    config = str(EXAMPLES / "axolotl.yml")
    found = advise(config, "--rank", "32", "--steps", "20", "--study", MEASURED)
    assert (found.evidence[0].rests, found.check) == ("studies", None)
    constant = math.sqrt(0.000691 * 0.000188)  # the study's, at half the batch
    assert 1.5 < rate(found) / constant < 5, "under a cosine the best rate is higher"
    longer = advise(config, "--rank", "32", "--steps", "2000", "--study", MEASURED)
    assert rate(longer) < rate(found)
    wide, narrow = (each.advice.lr.high / each.advice.lr.low for each in (longer, found))
    assert wide > narrow, "far from the steps of the study"
    other = advise(config, "--rank", "32", "--model", "tiny", "--study", MEASURED)
    assert other.evidence[0].rests == "run"
    assert "Studies of smollm2 do not count for tiny." in other.note


def test_a_run_that_tells_little_is_as_those_of_the_study(advise):
    """The study knows model, batch and schedule."""
    name = ROOT / "results/reference/horizons_small"
    measured = best_rates_of(load_measured(name), "s")
    rows = measured.query("rule == 'lora' and rank == 64 and steps == 256")
    found = advise("--rank", "64", "--optimizer", "adamw", "--steps", "256", "--study", str(name))
    assert rate(found) == pytest.approx(np.exp(rows["log_lr"].iloc[0]), rel=0.1)


def test_lora_at_one_alpha_about_keeps_its_rate_under_adam(advise, peft):
    found = advise(str(peft), "--rank", "256", "--lr", "3e-4", "--steps", "20")
    assert found.paste[0] == "LoraConfig(r=256, lora_alpha=16, use_rslora=False)"
    assert "data=file data.path=YOUR_FILE" in found.check.lacks
    assert 3e-4 < best(found) < 1.3 * 3e-4
    assert rate(found) == 3e-4, "kept: the interval holds it"
    assert "optimizer adamw (--optimizer)" in found.sure
    later = advise(str(peft), "--rank", "256", "--lr", "3e-4", "--steps", "1000")
    assert 1.3 < best(later) / 3e-4 < 2.1, "in hundreds of steps the best rate rises"
    doubled = advise(str(peft), "--rank", "256", "--alpha", "512", "--lr", "3e-4")
    assert 32**-1 < best(doubled) / best(found) < 32**-0.4, "alpha = 2 r"
    alpha = advise(str(peft), "--rule", "rslora").advice.alpha
    assert alpha / 8**0.5 == pytest.approx(16 / 8), "the same gamma, so the same run"
    assert rate(advise(str(peft), "--lr", "3e-4")) == 3e-4


@pytest.mark.parametrize(
    ("optimizer", "rule", "factor"),
    [
        ("sgd", "rslora", (0.8, 1.7)),  # lr gamma^2 r
        ("sgd", "lora", (12, 27)),
        ("muon", "rslora", (2, 4)),  # lr gamma
        ("adafactor", "rslora", (0.25, 0.6)),  # lr gamma r
        ("lion", "0.75", (0.45, 1.0)),
    ],
)
def test_every_family_has_its_law(advise, optimizer, rule, factor):
    run = ["--rank", "16", "--alpha", "16", "--rule", rule, "--lr", "0.01"]
    before = advise(*run, "--optimizer", optimizer, "--steps", "3000")
    assert (rate(before) == 0.01) == (not before.warning)
    assert "train.steps=300 " in before.check.command
    [rates] = re.findall(r"optimizer.lr=(\S+)", before.check.command)
    tried = [float(each) for each in rates.split(",")]
    assert all(1.9 < high / low < 2.1 for low, high in pairwise(tried))
    old, new = (Setting(rank, 16.0, rule, optimizer, lr=0.01) for rank in (16, 256))
    [first, *_] = advise_runs(old, new)
    assert factor[0] < first.rate.value / 0.01 < factor[1]
    assert first.rests == "run"


def test_the_check_trains_and_is_read(study_cli, advise, tmp_path, monkeypatch):
    """From flags to a measured rate, in the commands that it prints; fewer steps and no seed."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "tiny", "--rank", "16", "--lr", "0.004", "--steps", "4"]
    check = advise(*flags).check
    assert check.cost.startswith(f"{check.runs} runs of 20 steps")
    assert study_cli("advise", *flags, "--check", "check.sh").code == 0
    script = Path("check.sh").read_text()
    assert check.command in script
    short = shlex.split(check.command)[1:]
    few = ["train.steps=4", "data.heldout=4", "train.batch_size=2", "pack.fold=10"]
    ran = study_cli(*short, *few)
    assert ran.code == 0, ran.err
    found = advise(*flags, "--study", "results/check")
    assert "results/check" in str(found.note + found.why)


def test_what_advice_cannot_say_gets_a_line(study_cli, advise, axolotl, peft, tmp_path):
    ranks = json.loads(peft.read_text()) | {"rank_pattern": {"q_proj": 32}}
    peft.write_text(json.dumps(ranks))
    assert "The numbers do not cover: rank_pattern" in str(advise(str(peft), "--rank", "64").note)
    other = axolotl("a.yml", optimizer="came_pytorch", peft_use_dora=True, relora=True)
    words = str(advise(other, "--rank", "64").note)
    assert "came_pytorch" in words
    assert "peft_use_dora: true; relora: true" in words
    peft.write_text(json.dumps(ranks | {"use_dora": True}))
    assert "use_dora" in str(advise(str(peft)).note), "the user asked for a rate"
    for place in (tmp_path / "none.yaml", tmp_path / "s/cells/abc", tmp_path / "s"):
        ran = study_cli("advise", str(place))
        assert ran.code == 2
        assert len(ran.err.splitlines()) == 1
    quick = study_cli("advise", f"{ROOT}/results/reference/quick")
    assert re.search(r"quick is a study of 24 cells: give one of them, such as \S+, or", quick.err)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rule", "lorra"], "choose from lora, rslora, power"),
        (["--lr", "-1"], "--lr=-1: give a number above 0"),
        (["--rule", "1e9"], "give a power of the rank of at most 8"),
        (["--optimizer", "adamm"], "unknown optimizer 'adamm'"),
        (["--study", "nowhere"], "no study in nowhere"),
        (["--study", str(ROOT / "results/reference/quick")], "two learning rates"),
        (["--entry", "one"], "has no entry"),
    ],
)
def test_a_mistake_is_named(study_cli, peft, options, words):
    ran = study_cli("advise", str(peft), *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


@pytest.mark.parametrize(
    ("symptom", "keys", "words"),
    [
        ("no-learning", {"learning_rate": 1e-6}, "1. learning rate 1e-06 is 0.0"),
        ("diverged", {"learning_rate": 0.1}, "1. learning rate 0.1 is "),
        ("diverged", {"learning_rate": 2e-3}, "learning rate 2.0e-03, which is usual (90 %: "),
        ("grad-norm", {"lora_r": 64, "lora_alpha": 128}, "gamma is 2 (alpha = 2r), 8 times"),
        ("nothing-changes", {"bf16": True, "learning_rate": 1e-6}, "bf16 loses part of the"),
        ("nothing-changes", {"learning_rate": 1.5e-3}, "It shows no known cause of this."),
    ],
)
def test_a_configuration_is_searched(study_cli, axolotl, symptom, keys, words):
    config = axolotl("a.yml", base_model="SmolLM2-135M", max_steps=20, **keys)
    found = study_cli("advise", config, "--symptom", symptom)
    assert words in found.out
    as_json = json.loads(study_cli("advise", config, "--symptom", symptom, "--json").out)
    assert (as_json["schema"], as_json["lines"]) == (4, found.out.splitlines())
    *_, why = study_cli("advise", "--symptom", symptom).out.splitlines()
    assert found.out.splitlines()[-1] == why == SYMPTOMS[symptom]


def test_a_study_is_searched(study_cli, advise, short, tmp_path):
    """The cell that ended worst: what bf16 takes, at a low rate; a low limit, a large eps."""
    dead = study_cli("advise", f"{ROOT}/results/reference/bf16_dead_zone", "--symptom=no-learning")
    assert re.search("[12]. bf16 loses .* 99% after 1, 9[45]% after 10", dead.out)
    slow = ["name=slow", "train.clip=1e-3", "optimizer.eps=1", f"results_dir={tmp_path}"]
    assert study_cli("train", *short, *slow).code == 0
    found = study_cli("advise", str(tmp_path / "slow"), "--symptom=no-learning").out
    assert "100% of the gradients are clipped, down to 0.0" in found
    assert "times eps 1" in found
    [cell] = cell_folders(tmp_path / "slow")
    run = advise(str(cell.parent / cell.name[:8]), "--rank", "99").run
    assert (run.origin, run.model, run.steps) == (f"cell {cell.name} of slow", "tiny", 2)


def test_the_rank_that_holds_the_data(advise, peft):
    known = committed()["capacity"]
    data = ["--examples", "1000", "--tokens", "200", "--loss", "1.5"]
    [line] = advise("--rank", "16", *data, "--parameters", "4000000").data
    bits, least = 1000 * 200 * 1.5 / math.log(2), {}
    for name, each in zip(("mean", "low", "high"), known["bits"], strict=True):
        least[name] = math.ceil(bits / (each * 4_000_000 / 16))
    assert f"at most {bits / 1e6:.2g} Mbit to learn (1,000 examples of 200 supervised" in line
    assert f"is {least['mean']} [{least['high']}, {least['low']}]" in line
    of_rank_8 = advise(str(peft), "--rank", "16", *data, "--parameters", "2000000")
    assert of_rank_8.data == [line], "said of the new rank"
    [line] = advise("--rank", "16", *data, "--parameters", "4000").data
    assert "the smallest rank that stores all is above 2048 (" in line
    [line] = advise("--rank", "16", *data).data
    assert line == "The rank that your data need is not known without --parameters."
    assert advise("--rank", "16").data == []


def test_a_file_says_what_it_has_to_teach(advise, study_cli, tmp_path):
    """The same numbers from a file and from a cell that trained on it."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"the text of {n:03d}"}) + "\n" for n in range(40)))
    tokens = len("the text of 000")  # of a tokenizer of bytes; the first has no loss, the end has
    run = ["--rank", "4", "--model", "tiny"]
    [line] = advise(*run, "--data", str(path)).data
    assert f"(36 examples of {tokens} supervised tokens, 6." in line, "about log 256: by chance"
    words = ["model=tiny", "data=file", f"data.path={path}", "adapter.rank=4", "train.steps=1"]
    assert study_cli("train", *words, "name=own", f"results_dir={tmp_path}").code == 0
    assert advise(str(tmp_path / "own")).data == [line]
    assert advise(str(tmp_path / "own"), "--data", str(path)).data == [line]


def test_the_check_takes_the_data_that_were_given(advise, axolotl, tmp_path):
    path = tmp_path / "questions.jsonl"
    row = {"instruction": "Count.", "input": "", "output": "1, 2, 3"}
    path.write_text("".join(json.dumps(row | {"input": f"to {n}"}) + "\n" for n in range(30)))
    found = advise(axolotl("a.yml", sequence_len=256), "--data", str(path), "--model", "tiny")
    assert f"data.path={path}" in found.check.command
    assert found.check.lacks == ""
    assert "(27 examples of " in found.data[0]
    assert advise(axolotl("b.yml", datasets=None), "--rank", "64").check.lacks == "datasets"


def test_two_configurations_are_compared(advise, axolotl):
    old = axolotl("old.yml", max_steps=500, lr_scheduler="cosine")
    grown = {"lora_r": 64, "lora_alpha": 128, "micro_batch_size": 16}
    found = advise(old, axolotl("new.yml", max_steps=2000, lr_scheduler="linear", **grown))
    assert (found.schema, found.run.rank, found.advice.rank) == (4, 16, 64)
    assert found.run.origin == "Axolotl's old.yml"
    factors = {
        part.split()[0]: float(part.split(" x ")[1].rstrip("."))
        for part in found.why[1].removeprefix("Factors: ").split("; ")
    }
    assert set(factors) == {"rank", "alpha", "batch"}
    assert 4**-1 < factors["alpha"] < 4**-0.5, "gamma 4 times as large: 4^-s"
    assert 1 < factors["batch"] < 2
    # Each factor is rounded to two digits, and so is the rate.
    off = sum(10 ** (math.floor(math.log10(one)) - 1) / 2 / one for one in factors.values())
    assert best(found) / 2e-4 == pytest.approx(math.prod(factors.values()), rel=off + 0.01)
    [said] = re.findall(r"The batch by itself: x (\S+) \[(\S+), (\S+)\]", str(found.why))
    factor, low, high = map(float, said)
    assert low < factor < high
    assert factor == pytest.approx(factors["batch"])
    assert found.paste[-1] == f"learning_rate: {rate(found):.1e}"
    assert {"train.schedule=linear", "train.batch_size=16"} <= set(found.check.command.split())
    whole = advise(old, "--rank", "64", "--rule", "rslora", "--alpha", "5.7")
    assert (whole.paste[1], whole.advice.alpha) == ("lora_alpha: 6", 6), "Axolotl has integers"


def test_settings_that_a_file_lacks_are_said_and_added(advise, tmp_path):
    file = tmp_path / "l.yaml"
    lines = "model_name_or_path: org/m-410M\nstage: sft\ndataset: d\nlora_rank: 8\n"
    file.write_text(lines + "use_muon: true\nlearning_rate: 1.0e-4\n")
    found = advise(str(file), "--rank", "64")
    assert found.paste[:2] == ["lora_rank: 64", "lora_alpha: 16"]
    assert "Not in the file, so the default of LLaMA-Factory: lora_alpha 16." in found.note
    assert found.run.optimizer == "muon"


def test_whole_alphas_and_lengths_that_differ(advise, axolotl):
    old, new = axolotl("old.json", num_epochs=3), axolotl("new.json", max_steps=1500)
    found = advise(old, "--rank", "64", "--rule", "rslora")
    assert '"lora_alpha": 8,' in found.paste, "Axolotl refuses a fraction"
    assert any(line.startswith("Factors: rank 16 to 64") for line in found.why)
    said = advise(old, new)
    assert "steps does not change the rate" in said.why[1]
    assert said.why[2] == "Assumed: 500 steps where they are unknown (--steps)."
    given = advise(old, new, "--steps", "1000")
    assert (given.run.steps, given.advice.steps) == (1000, 1500)


@pytest.mark.parametrize("keys", [{"lora_r": 0}, {"lora_r": -8}, {"loraplus_lr_ratio": -4}])
def test_a_value_that_is_not_above_zero_is_named(study_cli, axolotl, keys):
    ran = study_cli("advise", axolotl("a.yml", **keys))
    assert (ran.code, ran.err.count("give a number above 0")) == (2, 1)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        *(("SmolLM2-360M", 3.6e8), ("Qwen2.5-7B-Instruct-1M", 7e9)),
        *(("stablelm-2-1_6b", 1.6e9), ("Mixtral-8x7B-v0.1", 5.6e10)),
    ],
)
def test_a_name_tells_the_size(model, size):
    assert Setting(8, 16, "lora", "adamw", model=short_model(f"org/{model}")).size == size


def by_peft(lines):
    values = {"LoraConfig": pytest.importorskip("peft").LoraConfig}
    config = eval(lines[0], values)
    exec(lines[1], values)
    return config.r, config.use_rslora, values["learning_rate"]


def by_trl(lines):
    trl = pytest.importorskip("trl")
    parser = trl.TrlParser((trl.SFTConfig, trl.ModelConfig))
    values = yaml.safe_load("\n".join([*lines, "use_cpu: true", "bf16: false"]))
    run, model = parser.parse_dict(values)
    return model.lora_r, model.use_rslora, run.learning_rate


@pytest.mark.parametrize(("name", "parse"), [(None, by_peft), ("trl.yaml", by_trl)])
def test_pasted_lines_load_in_the_parser_of_their_tool(advise, peft, name, parse):
    file = str(EXAMPLES / name) if name else str(peft)
    found = advise(file, "--rank", "256", "--rule", "rslora", "--lr", "1e-5", "--steps", "20")
    rank, is_rslora, lr = parse(found.paste)
    assert (rank, is_rslora) == (256, True)
    assert lr == pytest.approx(rate(found), rel=0.05)


LLAMA_FACTORY = """model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
stage: sft
finetuning_type: lora
lora_target: all
lora_rank: {rank}
use_rslora: {rslora}
learning_rate: {lr}
max_steps: 450
per_device_train_batch_size: 16
gradient_accumulation_steps: 1
lr_scheduler_type: cosine
dataset: alpaca_en_demo
template: llama3
"""


@pytest.mark.parametrize(("rank", "lr"), [(256, "2.0e-4"), (128, "1.0e-4")])
def test_a_run_that_is_known_to_collapse_is_warned_of_first(study_cli, advise, tmp_path, rank, lr):
    """LLaMA-Factory sets alpha to 2r. Published at rank 256 and 2e-4: loss 7.34, base 1.34."""
    file = tmp_path / "l.yaml"
    file.write_text(LLAMA_FACTORY.format(rank=rank, rslora="true", lr=lr))
    first = study_cli("advise", str(file)).out.splitlines()[0]
    assert first.startswith(f"Warning learning rate {float(lr):.1e} is ")
    found = advise(str(file))
    assert "collapsed" in found.warning[1]
    assert [each.rests for each in found.evidence] == ["law"]
    assert rate(found) < float(lr) / 3


def test_a_rate_inside_the_interval_is_kept(advise, tmp_path):
    file = tmp_path / "l.yaml"
    lines = LLAMA_FACTORY.format(rank=16, rslora="false", lr="2.0e-4")
    file.write_text(lines + "lora_alpha: 32\n")
    found = advise(str(file), "--rank", "256")
    assert found.warning == []
    assert rate(found) == 2e-4
    assert found.evidence[0].rate.low < 2e-4 < found.evidence[0].rate.high
    assert found.paste[-1] == "learning_rate: 2.0e-04"


def test_the_gain_is_that_of_the_own_rule(advise, axolotl):
    ruled = {"lora_alpha": 4, "peft_use_rslora": True, "base_model": "SmolLM2-135M"}
    own = advise(axolotl("a.yml", lora_r=4, max_steps=256, **ruled), "--rank", "256").gain
    assert "rsLoRA" in own
    assert "not known" in advise(axolotl("b.yml", lora_alpha=4096), "--rank", "2000").gain


def test_alpha_is_advised_where_it_was_measured(advise, axolotl):
    known = {"base_model": "SmolLM2-135M", "lora_alpha": 16, "max_steps": 256}
    found = advise(axolotl("a.yml", **known), "--rank", "256")
    assert found.advice.alpha == 256
    assert "nats a token" in found.alpha
    other = advise(axolotl("b.yml", **known | {"base_model": "org/m-7B"}), "--rank", "256")
    assert other.advice.alpha == 16
    assert other.alpha.startswith("kept")


CONFIGS = sorted((ROOT.parent / "shared/data/configs").glob("*/*.y*ml"))


@pytest.mark.skipif(not CONFIGS, reason="there is no ../shared")
def test_real_configurations_get_at_most_14_lines(study_cli):
    """One that cannot be trained has one line with the reason."""
    for file in CONFIGS:
        ran = study_cli("advise", str(file), "--rank", "64")
        lines = (ran.out if ran.code == 0 else ran.err).splitlines()
        assert len(lines) <= (14 if ran.code == 0 else 1), file.name
