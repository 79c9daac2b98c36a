"""``study advise``: what it prints for the configurations of other tools, and whether it is so."""

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from docs import evidence
from study.analysis.advice import Setting, committed, committed_evidence, rest
from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.store import cell_folders
from study.training.loop import CellStep, train
from study.training.run import Run

Cli = Callable[..., Any]
Build = Callable[..., CellConfig]
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
MEASURED = str(ROOT / "results/reference/paper_learning_rate")


@pytest.fixture
def advise(study_cli: Cli) -> Cli:
    """The advice as JSON, after the text was checked to fit and to name its evidence."""

    def ask(*arguments: str) -> SimpleNamespace:
        ran = study_cli("advise", *arguments)
        assert ran.code == 0, ran.err
        assert len(ran.out.splitlines()) <= 15
        text = study_cli("advise", *arguments, "--json").out
        namespace = lambda values: SimpleNamespace(**values)  # noqa: E731
        found = json.loads(text, object_hook=namespace, parse_constant=pytest.fail)
        keys = "run advice paste evidence changes cannot assumed notes check"
        assert " ".join(vars(found)) == keys
        assert found.evidence[0].words in ran.out
        return found

    return ask


@pytest.fixture
def peft(tmp_path: Path) -> Path:
    """An adapter_config.json: LoRA of rank 8 and alpha 16."""
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 8}
    config |= {"lora_alpha": 16, "use_rslora": False, "target_modules": "all-linear"}
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(config))
    return path


def rate(advice: SimpleNamespace) -> float:
    return float(advice.advice.lr.value)


def test_the_evidence_is_that_of_the_committed_studies() -> None:
    """``make figures`` writes it. The study on tiny takes too long to read here."""
    known = committed()
    assert evidence.step_law(evidence.LONGER) == (512, 2048, pytest.approx(-0.27, abs=0.005))
    for name in evidence.STUDIES[:2]:
        found = evidence.of_study(name)
        for key, rows in (("bests", evidence.last_bests(found)), ("laws", found.laws)):
            expected = json.loads(evidence.written(list(rows)))
            assert [row for row in known[key] if row["source"] == name] == expected
    facts = evidence.facts()
    assert known["facts"] == {key: pytest.approx(value, rel=1e-3) for key, value in facts.items()}


def test_a_measured_exponent_moves_the_rate_and_is_pasted(advise: Cli) -> None:
    """rsLoRA from rank 16 to 256 at alpha 16: the best rate goes as r^-0.31 on SmolLM2."""
    found = advise(str(EXAMPLES / "axolotl.yml"), "--rank", "256", "--study", MEASURED)
    first = found.evidence[0]
    assert first.kind == "exponent"
    assert first.words.startswith("measured, x 0.28 [0.22, 0.35] between ranks 4 and 256: ")
    assert rate(found) == pytest.approx(2e-4 * 16**first.exponent.value, rel=1e-3)
    assert first.exponent.value == pytest.approx(-0.308, abs=1e-3)
    [theory] = [basis for basis in found.evidence if basis.kind == "theory"]
    # From an equal descent, r^-1/2, to half of an equal output, which bends: rho is not known.
    descent, output = 16 / 4, math.sqrt(256 * 265 / (16 * 25)) / 4
    assert theory.rate.low == pytest.approx(2e-4 / descent, rel=1e-3)
    assert theory.rate.high == pytest.approx(2e-4 / output**0.5, rel=1e-3)
    assert theory.rate.low < theory.rate.value < theory.rate.high


def test_a_study_of_the_users_model_gives_the_rate_itself(advise: Cli) -> None:
    """Between its ranks 4 and 256 the best rates lie on a line in the logs."""
    config = str(EXAMPLES / "axolotl.yml")
    found = advise(config, "--rank", "32", "--steps", "20", "--study", MEASURED)
    first = found.evidence[0]
    assert (first.kind, first.inside, found.check) == ("measured", True, None)
    assert rate(found) == pytest.approx(math.sqrt(0.000691 * 0.000188), rel=0.15)
    assert first.rate.low < rate(found) < first.rate.high
    longer = advise(config, "--rank", "32", "--steps", "200", "--study", MEASURED)
    assert 10**0.2 < rate(found) / rate(longer) < 10**0.5, "the law of two studies"
    [low, high] = (getattr(longer.evidence[0].rate, end) for end in ("low", "high"))
    assert low == pytest.approx(first.rate.low / 10**0.5, rel=1e-3)
    assert high == pytest.approx(first.rate.high, rel=1e-3), "from steps^-1/2 to no change"
    far = advise(config, "--rank", "32", "--steps", "201", "--study", MEASURED)
    assert far.evidence[0].kind == "exponent", "over ten times the steps, no rates count"
    assert far.notes[-1] == f"{MEASURED} has 20 steps of smollm2: only its exponents count"


def test_lora_at_one_alpha_keeps_its_rate_under_adam(advise: Cli, peft: Path) -> None:
    found = advise(str(peft), "--rank", "256", "--lr", "3e-4")
    assert found.advice.alpha == 16
    assert found.paste[0] == "LoraConfig(r=256, lora_alpha=16, use_rslora=False)"
    assert "data=pydoc" in found.notes[0]
    assert rate(found) == pytest.approx(3e-4, rel=0.15)
    assert any("optimizer adamw" in words for words in found.assumed)
    doubled = advise(str(peft), "--rank", "256", "--alpha", "512", "--lr", "3e-4")
    assert 32**-1 < rate(doubled) / rate(found) < 32**-0.5, "alpha = 2 r"


@pytest.mark.parametrize(
    ("optimizer", "rule", "factor"),
    [
        ("sgd", "rslora", (0.8, 1.7)),  # lr gamma^2 r
        ("sgd", "lora", (12, 27)),
        ("muon", "rslora", (2, 4)),  # lr gamma
        ("adafactor", "rslora", (0.25, 0.5)),  # lr gamma r
        ("lion", "0.75", (0.45, 0.8)),
    ],
)
def test_every_family_has_its_law(
    optimizer: str, rule: str, factor: tuple[float, float], advise: Cli
) -> None:
    run = ["--rank", "16", "--alpha", "16", "--rule", rule, "--lr", "0.01"]
    before = advise(*run, "--optimizer", optimizer)
    assert rate(before) == 0.01
    assert any("rho" in word for word in before.changes) == (optimizer in ("adafactor", "lion"))
    p = {"lora": 1.0, "rslora": 0.5}.get(rule) or float(rule)
    old, new = (Setting(rank, 16.0, p, optimizer, lr=0.01) for rank in (16, 256))
    [first, *_] = rest(old, new, None, committed_evidence())
    assert factor[0] < first.rate.value / 0.01 < factor[1]


def trained(base: FrozenBase, corpus: Corpus, config: CellConfig) -> list[CellStep]:
    return [cells[0] for cells in train(base, corpus, [Run.of(config, corpus)])]


def losses(steps: list[CellStep]) -> list[float]:
    return [step.metrics["loss"] for step in steps if "loss" in step.metrics]


def test_the_same_run_is_the_same_within_rounding(
    advise: Cli, peft: Path, tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    for name in ("adamw", "sgd"):
        found = advise(str(peft), "--rule", "rslora", "--optimizer", name)
        half = {"adamw": 0.5, "sgd": 0.25}[name]
        run = ["adapter.rank=8", f"optimizer={name}", "train.steps=4", "optimizer.lr=0.02"]
        # Adam's eps is compared with gradients, which change with alpha: exact without it.
        run += ["optimizer.eps=1e-30"] if name == "adamw" else []
        runs = {
            "plain": ["adapter.alpha=16"],
            "rslora": ["adapter.scaling=rslora", f"adapter.alpha={found.advice.alpha}"],
            "twice": ["adapter.alpha=32", f"optimizer.loraplus_lr_ratio={half}"],
            "double": ["adapter.alpha=32"],
        }
        found_losses = {
            key: losses(trained(tiny_base, corpus, cell(*run, *values)))
            for key, values in runs.items()
        }
        assert found_losses["rslora"] == pytest.approx(found_losses["plain"], rel=1e-5)
        assert found_losses["twice"] == pytest.approx(found_losses["plain"], rel=1e-5)
        assert found_losses["double"] != pytest.approx(found_losses["plain"], rel=1e-4)


def test_the_check_trains_and_is_read(
    study_cli: Cli, advise: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From flags to a measured rate, in the commands that it prints; fewer steps and no seed."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "tiny", "--rank", "16", "--lr", "0.004", "--steps", "4"]
    check = advise(*flags).check
    assert check.cost.startswith("400 steps; ")
    words = shlex.split(check.command)[1:]
    assert ("adapter.rank=4,16" in words, "seed=0,1" in words) == (True, True)
    short = ["seed=0" if word == "seed=0,1" else word for word in words]
    few = ["train.steps=4", "data.heldout=4", "train.batch_size=2", "pack.fold=10"]
    ran = study_cli(*short, *few)
    assert ran.code == 0, ran.err
    found = advise(*shlex.split(check.then)[2:])
    where = found.evidence[0].where
    assert (where and where.source == "results/check") or "results/check" in found.notes[0]


def test_a_check_trains_a_tenth_of_the_steps_at_rates_that_can_train(advise: Cli) -> None:
    run = ["--model", "gemma3", "--rank", "64", "--rule", "rslora", "--steps", "3000"]
    for optimizer, highest in ("adamw", 0.02), ("lion", 0.02), ("sgd", 0.24):
        found = advise(*run, "--lr", "0.01", "--optimizer", optimizer)
        assert "train.steps=300" in found.check.command
        [rate] = re.findall(r"optimizer.lr=\S*,(\S+)", found.check.command)
        assert float(rate) == highest
    assert "rho (here about" in advise(*run, "--lr", "1e-4").changes[0]


def test_what_advice_cannot_say_gets_a_line(
    study_cli: Cli, advise: Cli, peft: Path, tmp_path: Path
) -> None:
    ranks = json.loads(peft.read_text()) | {"rank_pattern": {"q_proj": 32}}
    peft.write_text(json.dumps(ranks))
    assert "rank_pattern" in advise(str(peft), "--rank", "64").cannot[0]
    other = (EXAMPLES / "axolotl.yml").read_text().replace("adamw_torch_fused", "came_pytorch")
    (tmp_path / "a.yml").write_text(other + "\npeft_use_dora: true\n")
    words = " ".join(advise(str(tmp_path / "a.yml"), "--rank", "64").cannot)
    assert "came_pytorch" in words
    assert "peft_use_dora" in words
    peft.write_text(json.dumps(ranks | {"use_dora": True}))
    for place in (peft, tmp_path / "none.yaml", tmp_path / "s/cells/abc", tmp_path / "s"):
        ran = study_cli("advise", str(place))
        assert ran.code == 2
        assert len(ran.err.splitlines()) == 1


def test_bf16_at_a_small_rate_is_said(advise: Cli, tmp_path: Path) -> None:
    def notes(rate: str) -> list[str]:
        file = tmp_path / "a.yml"
        file.write_text(re.sub("learning_rate: .*", f"learning_rate: {rate}", axolotl))
        return advise(str(file), "--rule", "lora", "--alpha", "16").notes

    axolotl = (EXAMPLES / "axolotl.yml").read_text()
    assert re.search(r"loses about (9\d|100)% .* after 1 update", notes("1e-6")[0])
    assert notes("5e-3") == []


def test_a_cell_is_read_by_the_start_of_its_id(advise: Cli) -> None:
    cell = cell_folders(ROOT / "results/reference/quick")[0]
    found = advise(str(cell.parent / cell.name[:8]), "--rank", "999", "--study", MEASURED)
    assert found.run.origin == f"cell {cell.name} of quick"
    assert (found.run.model, found.run.steps, found.run.lr) == ("smollm2", 10, 1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", "0"], "0 is not in the range"),
        (["--rule", "lorra"], "choose from lora, rslora, power"),
        (["--rule", "power"], "needs a finite adapter.exponent"),
        (["--lr", "-1"], "--lr=-1: give a number above 0"),
        (["--alpha", "-16"], "--alpha=-16: give a number above 0"),
        (["--alpha", "0"], "--alpha=0: give a number above 0"),
        (["--optimizer", "adamm"], "unknown optimizer 'adamm'"),
        (["--study", "nowhere"], "no study in nowhere"),
        (["--study", str(ROOT / "results/reference/quick")], "two learning rates"),
        (["--entry", "one"], "has no entry"),
    ],
)
def test_a_mistake_is_named(study_cli: Cli, peft: Path, options: list[str], words: str) -> None:
    ran = study_cli("advise", str(peft), *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


@pytest.mark.parametrize("symptom", ["no-learning", "diverged", "grad-norm", "nothing-changes"])
def test_a_symptom_has_its_numbers_and_its_page(study_cli: Cli, symptom: str) -> None:
    lines = study_cli("advise", "--symptom", symptom).out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["seen", "why", "set", "check", "page"]
    assert len(re.findall(r"\d+\.\d+|\d+%", lines[1])) >= 2
    of_file = study_cli("advise", "my.yml", "--symptom", symptom)
    assert of_file.out.splitlines() == [line.replace("CONFIG", "my.yml") for line in lines]
    assert "reads no configuration" in of_file.err
    page, _, place = lines[-1].removeprefix("page: ").partition("#")
    headings = re.findall("^#+ (.*)$", (ROOT / page).read_text(), re.M)
    assert not place or place in [name.lower().replace(" ", "-") for name in headings]


def test_a_folder_of_peft_is_read_without_torch(peft: Path) -> None:
    code = (
        "import sys; from study.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    arguments = ["advise", str(peft.parent), "--rank", "64"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0
    assert ran.stderr.splitlines()[-1] == "False"
    assert "LoraConfig(r=64" in ran.stdout
