"""``study transfer``: what it prints for the configurations of other tools, trained on tiny."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.cli.transfer import bounds, first_update_lines, growths, read_source, read_target
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


@pytest.fixture
def peft(tmp_path: Path) -> Path:
    """An adapter_config.json: LoRA of rank 8 and alpha 16."""
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 8}
    config |= {"lora_alpha": 16, "use_rslora": False, "target_modules": "all-linear"}
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(config))
    return path


def alphas(text: str, keeps: str) -> list[float]:
    """The alpha of the line that keeps something, and its two ends if there are any."""
    [line] = [line for line in text.splitlines() if f"keeps the {keeps}: alpha" in line]
    [found] = re.findall(r"alpha (.+), or ", line)
    return [float(number) for number in re.findall(r"[\d.]+", found)]


def test_finlora_from_rank_64_to_256(study_cli: Cli) -> None:
    """rsLoRA under AdamW: descent goes as gamma r = alpha sqrt(r), the gradient as alpha."""
    file = EXAMPLES / "finlora.yaml"
    ran = study_cli("transfer", str(file), "--rank", "256")
    assert ran.code == 0
    assert "at rank 64: lora with alpha 128, rslora with alpha 16" in ran.out
    assert "at rank 256: nothing" in ran.out
    assert alphas(ran.out, "descent of the first update") == [8]
    assert alphas(ran.out, "gradient norm at step 0") == [16]
    kept = alphas(ran.out, "adapter_out after the first update")
    assert kept == pytest.approx([8.4, 8, 16], rel=0.01)
    assert "16 times at rank 256 is normal" in ran.out
    assert "LoraConfig(r=256, lora_alpha=8, use_rslora=True)  # learning rate: yours" in ran.out
    sgd = study_cli("transfer", str(file), "--rank", "256", "--optimizer", "sgd")
    assert alphas(sgd.out, "descent of the first update") == [16], "gamma^2 r is alpha^2"


def test_axolotl_gets_lines_to_paste(study_cli: Cli) -> None:
    """From rank 16 to 256 the descent of rsLoRA under AdamW grows by 4, so alpha falls by 4.

    A rate that falls by 4 would keep the descent too, but slows A: it trains worse.
    """
    ran = study_cli("transfer", str(EXAMPLES / "axolotl.yml"), "--rank", "256")
    pasted = ["lora_r: 256", "lora_alpha: 4", "peft_use_rslora: true", "learning_rate: 0.0002"]
    assert [line.strip() for line in ran.out.splitlines()[-4:]] == pasted
    lora = study_cli("transfer", str(EXAMPLES / "axolotl.yml"), "--rule", "lora")
    pasted = ["lora_r: 16", "lora_alpha: 64", "peft_use_rslora: false", "learning_rate: 0.0002"]
    assert [line.strip() for line in lora.out.splitlines()[-4:]] == pasted


def test_keeping_the_gradient_norm_under_adam_warns_of_the_descent(study_cli: Cli) -> None:
    """LoRA from rank 16 to 1024: the norm falls by 8, and so would alpha raise the descent."""
    options = ["--rank", "1024", "--rule", "lora", "--keep", "grad_norm"]
    ran = study_cli("transfer", str(EXAMPLES / "axolotl.yml"), *options)
    assert "warning: adamw divides the gradient norm out" in ran.out
    assert "descent of the first update by 8;" in ran.out


def test_what_keeps_adapter_out_without_a_study_is_near_what_was_measured(study_cli: Cli) -> None:
    """The middle of the two ends was off by up to 1.8 times."""
    options = ["--rank", "256", "--keep", "adapter_out"]
    ran = study_cli("transfer", str(EXAMPLES / "axolotl.yml"), *options)
    [alpha] = re.findall(r"lora_alpha=([\d.]+),", ran.out)

    def move(rank: int, r_sign: float) -> float:  # rsLoRA under a sign-like rule, at one rate
        return math.sqrt(rank * (1 + (r_sign - 1) / rank))

    for r_sign in (10.1, 12.1):  # measured on tiny and on SmolLM2
        right = 16 * move(16, r_sign) / move(256, r_sign)
        assert float(alpha) == pytest.approx(right, rel=0.1)


def trained(base: FrozenBase, corpus: Corpus, config: CellConfig) -> list[CellStep]:
    return [cells[0] for cells in train(base, corpus, [Run.of(config, corpus)])]


def losses(steps: list[CellStep]) -> list[float]:
    return [step.metrics["loss"] for step in steps if "loss" in step.metrics]


def test_exactly_equivalent_runs_are_the_same_within_rounding(
    study_cli: Cli, peft: Path, tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    for name, ratio in (("adamw", 2), ("sgd", 4)):
        out = study_cli("transfer", str(peft), "--rule", "rslora", "--optimizer", name).out
        [alpha] = re.findall(r"lora_alpha=([\d.]+), use_rslora=True", out)
        assert f"alpha 32 instead of 16, or loraplus_lr_ratio {ratio} instead of 1" in out
        run = ["adapter.rank=8", f"optimizer={name}", "train.steps=4", "optimizer.lr=0.02"]
        # Adam's eps is compared with gradients, which change with alpha: exact without it.
        run += ["optimizer.eps=1e-30"] if name == "adamw" else []
        runs = {
            "plain": ["adapter.alpha=16"],
            "rslora": ["adapter.scaling=rslora", f"adapter.alpha={alpha}"],
            "double": ["adapter.alpha=32"],
            "loraplus": ["adapter.alpha=16", f"optimizer.loraplus_lr_ratio={ratio}"],
        }
        found = {
            key: losses(trained(tiny_base, corpus, cell(*run, *values)))
            for key, values in runs.items()
        }
        assert found["rslora"] == pytest.approx(found["plain"], rel=1e-5)
        assert found["loraplus"] == pytest.approx(found["double"], rel=1e-5)
        assert found["double"] != pytest.approx(found["plain"], rel=1e-4)


QUANTITIES = {
    "descent of the first update": (0, "adapter_update", "descent"),
    "gradient norm at step 0": (0, "adapter_grad", "norm"),
    "adapter_out after the first update": (1, "adapter_out", "rms"),
}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_runs_that_are_equal_in_the_first_update_agree_in_what_was_measured(
    name: str, peft: Path, tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    """From LoRA at rank 32 to rsLoRA at rank 128, with the layers' alignments as recorded."""
    peft.write_text(json.dumps(json.loads(peft.read_text()) | {"r": 32}))
    usual = [f"optimizer={name}", "optimizer.lr=1e-4", "train.steps=1", "probes.steps=[0,1]"]
    usual += ["probes.stats=[all,r_sign,r_align]"]
    usual += ["optimizer.eps=1e-30"] if name == "adamw" else []

    def probed(seed: int, *overrides: str) -> list[pd.DataFrame]:
        """The rows of steps 0 and 1."""
        steps = trained(tiny_base, corpus, cell(*usual, f"seed={seed}", "data.seed=0", *overrides))
        return [step.probes.assign(step=i, cell_id=str(seed)) for i, step in enumerate(steps)]

    def size(cells: list[list[pd.DataFrame]], quantity: str) -> float:
        """The mean power over seeds, as the curves have it; the geometric mean over layers."""
        step, site, stat = QUANTITIES[quantity]
        rows = pd.concat([probes[step] for probes in cells])
        rows = rows[rows["site"] == site]
        power = rows[stat].astype(float) ** (1 if stat == "descent" else 2)
        return float(np.exp(np.log(power.groupby(rows["layer"].astype(str)).mean()).mean()))

    seeds = (0, 1)
    old = [probed(seed, "adapter.rank=32") for seed in seeds]
    run = read_source(peft, lr=1e-4, optimizer=name)
    target = read_target(run, 128, "rslora")
    cells = pd.DataFrame({"cell_id": list("01"), "optimizer": name, "init": "kaiming"})
    probes = pd.concat([rows for one in old for rows in one])
    found = bounds(run, SimpleNamespace(cells=cells, probes=probes))
    text = "\n".join(first_update_lines(run, target, growths(run, target, found)))
    for quantity in QUANTITIES:
        [alpha] = alphas(text, quantity)
        new = ("adapter.rank=128", "adapter.scaling=rslora", f"adapter.alpha={alpha}")
        kept = size([probed(seed, *new) for seed in seeds], quantity)
        assert kept == pytest.approx(size(old, quantity), rel=0.15), quantity
    twice = ("adapter.rank=128", "adapter.scaling=rslora", f"adapter.alpha={2 * alpha}")
    assert size([probed(0, *twice)], quantity) > 1.6 * size(old, quantity), "alpha matters"


def test_a_measured_study_gives_rates_with_intervals_the_closest_alpha_first(
    study_cli: Cli,
) -> None:
    study = ["--study", str(ROOT / "results/reference/learning_rate_rho_tiny")]
    out = study_cli("transfer", str(EXAMPLES / "axolotl.yml"), "--rank", "1024", *study).out
    over = r"learning rate (\S+) \((\S+) to (\S+), 95 % interval over seeds\)"
    laws = re.findall(r"exponent (\S+) \[(\S+), (\S+)\] at the study's alpha, (\S+),", out)
    for rates, law in zip(re.findall(over, out), laws, strict=True):
        measured = [2e-4 * (1024 / 16) ** float(exponent) for exponent in law[:3]]
        assert [float(rate) for rate in rates] == pytest.approx(measured, rel=0.03)
    away = [abs(math.log(float(law[3]) / 16)) for law in laws]
    assert away == pytest.approx(sorted(away))
    assert out.count("so this extrapolates") == len(laws) == 5
    out = study_cli(
        "transfer", str(EXAMPLES / "axolotl.yml"), "--rank", "2", "--rule", "2", *study
    ).out
    assert "no exponent for adamw and power p=2" in out


def test_a_cell_is_read_by_the_start_of_its_id(study_cli: Cli) -> None:
    cell = cell_folders(ROOT / "results/reference/quick")[0]
    ran = study_cli("transfer", str(cell.parent / cell.name[:8]), "--rank", "999")
    assert ran.code == 0
    assert f"cell {cell.name} of quick: rank " in ran.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", "0"], "0 is not in the range"),
        (["--rule", "lorra"], "choose from lora, rslora, power"),
        (["--rule", "power"], "has no exponent"),
        (["--lr", "-1"], "lr=-1.0 should be greater than 0"),
        (["--optimizer", "adamm"], "'adamm' is not one of 'sgd'"),
        (["--study", "nowhere"], "no study in nowhere"),
        (["--entry", "one"], "has no entry"),
    ],
)
def test_a_mistake_is_named(study_cli: Cli, peft: Path, options: list[str], words: str) -> None:
    ran = study_cli("transfer", str(peft), *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


def test_a_place_without_a_run_gets_one_line(study_cli: Cli, peft: Path, tmp_path: Path) -> None:
    peft.write_text(json.dumps(json.loads(peft.read_text()) | {"use_dora": True}))
    for place in (peft, tmp_path / "none.yaml", tmp_path / "s/cells/abc", tmp_path / "s"):
        ran = study_cli("transfer", str(place))
        assert ran.code == 2
        assert len(ran.err.splitlines()) == 1


def test_a_folder_of_peft_is_read_without_torch_and_says_what_it_assumes(peft: Path) -> None:
    code = (
        "import sys; from study.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    arguments = ["transfer", str(peft.parent), "--rank", "64"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0
    assert ran.stderr.splitlines()[-1] == "False"
    assert "assumed: optimizer adamw" in ran.stdout
    assert "assumed: no learning rate" in ran.stdout
