"""Does ``study advise`` find the best rate? Ten configurations, followed on the tiny model.

``python -m benchmarks.advice [ROW ...]`` trains in ``results/advice`` and goes on where it stopped.
Of each configuration it sweeps rates at the first rank and takes the best one as the user's. Then
it asks for the advice, knowing nothing of the model, and sweeps rates at the new rank. It also asks
again with the check that ``study advise`` prints. The table holds the rows that are done.
"""

import contextlib
import io
import json
import math
import shlex
import sys
from pathlib import Path

import pandas as pd
import yaml
from hydra.core.global_hydra import GlobalHydra

from study.analysis.rates import best_rates_of
from study.cli.group import cli
from study.store.tables import load_measured

FOLDER = Path("results/advice")
TABLE = Path("results/reference/advice/advised.parquet")
STEPS, SEEDS, STEP = 40, "0,1,2", 2.0
SHARED = (
    "model=tiny data=pydoc data.sequence_length=48 data.heldout=16 train.batch_size=4 "
    f"probes.steps=null checkpoint.every=null pack.fold=20 train.steps={STEPS} seed={SEEDS}"
)
LORA: dict[str, object] = {"lora_r": 8, "lora_alpha": 16, "optimizer": "adamw_torch_fused"}
RS = {"peft_use_rslora": True}
ROWS: list[tuple[dict[str, object], str, float]] = [
    (LORA, "--rank 128", 4e-3),
    (LORA | {"lora_r": 16, "lora_alpha": 32}, "--rank 256 --rule rslora", 4e-3),
    (LORA | RS | {"lora_r": 64}, "--rank 8", 2e-3),
    (LORA | RS | {"lora_r": 4, "lora_alpha": 8}, "--rank 256", 4e-3),
    (
        LORA | {"lora_r": 64, "lora_alpha": 128, "optimizer": "adamw_bnb_8bit"},
        "--rank 16 --alpha 32",
        2e-3,
    ),
    (LORA | {"loraplus_lr_ratio": 8}, "--rank 64 --rule rslora", 2e-3),
    (LORA | {"lora_r": 16, "optimizer": "sgd"}, "--rank 128", 1.0),
    (LORA | RS | {"lora_r": 16, "optimizer": "sgd"}, "--rank 128 --rule lora", 0.3),
    (LORA | RS | {"optimizer": "muon"}, "--rank 128", 1e-2),
    (LORA | {"optimizer": "adafactor"}, "--rank 64 --rule 0.75", 1e-2),
]
"""An Axolotl configuration, what is asked, and a rate to begin the first sweep at."""


def study(*words: str) -> str:
    """What the command ``study`` prints. It runs in this process: imports take seconds."""
    GlobalHydra.instance().clear()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli(list(words), prog_name="study", standalone_mode=False)
    return out.getvalue()


def axolotl(keys: dict[str, object], rate: float, path: Path) -> Path:
    """An Axolotl configuration with a learning rate, in a file."""
    rest = {"base_model": "org/unknown", "adapter": "lora", "lora_target_linear": True}
    rest |= {"datasets": [{"path": "org/data", "type": "alpaca"}], "max_steps": STEPS}
    rest |= {"micro_batch_size": 4}
    rest |= {"bf16": False, "max_grad_norm": 0, "sequence_len": 48, "learning_rate": rate}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(rest | keys))
    return path


def ask(path: Path, question: str, *more: str) -> dict:
    return json.loads(study("advise", str(path), *question.split(), *more, "--json"))


def train(name: str, overrides: list[str], rates: list[float]) -> None:
    swept = f"optimizer.lr={','.join(f'{rate:.3g}' for rate in rates)}"
    place = [f"results_dir={FOLDER}", f"name={name}"]
    study("train", "-m", *SHARED.split(), *place, *overrides, swept)


def best(name: str) -> tuple[float, str]:
    """The best rate of a sweep of one rank, and its edge."""
    [row] = (
        best_rates_of(load_measured(FOLDER / name), name)
        .query(f"steps == {STEPS}")
        .to_dict("records")
    )
    return math.exp(row["log_lr"]), str(row["edge"])


def sweep(name: str, overrides: list[str], centre: float) -> float:
    """The best rate: two steps to either side of the centre, further while it is at an end."""
    rates = [centre * STEP**n for n in range(-2, 3)]
    while True:
        train(name, overrides, rates)
        found, edge = best(name)
        if not edge:
            return found
        factor = STEP if edge == "highest" else 1 / STEP
        end = max(rates) if edge == "highest" else min(rates)
        rates += [end * factor, end * factor**2]


def overrides(advice: dict) -> list[str]:
    """What the check of some advice sets, without what it sweeps."""
    words = shlex.split(advice["check"]["command"])[4:]
    own = ("adapter.scaling", "adapter.alpha", "optimizer")
    return [word for word in words if word.startswith(own) and "optimizer.lr=" not in word]


def follow(number: int) -> dict:
    """A row of the table."""
    keys, question, start = ROWS[number]
    file = axolotl(keys, start, FOLDER / f"{number}.yml")
    as_is = ask(file, "")
    old = sweep(f"{number}-old", [*overrides(as_is), f"adapter.rank={keys['lora_r']}"], start)
    advice = ask(axolotl(keys, old, file), question)
    told, rests = advice["advice"], advice["evidence"][0]["rests"]
    rank, rate = f"adapter.rank={told['rank']}", told["lr"]
    new = sweep(f"{number}-new", [*overrides(advice), rank], rate["value"])
    words = shlex.split(ask(file, f"{question} --model tiny")["check"]["command"])[4:]
    kept = [word for word in words if not word.startswith(("name", "data", "model", "probes"))]
    place = [f"name={number}-check", f"results_dir={FOLDER}"]
    study("train", "-m", *SHARED.split()[:-2], *place, *kept)
    checked = ask(file, f"{question} --model tiny", "--study", str(FOLDER / f"{number}-check"))
    return {
        **{key: as_is["run"][key] for key in ("rank", "rule", "alpha", "optimizer", "ratio")},
        **{f"new_{key}": told[key] for key in ("rank", "rule", "alpha")},
        "old_best": old,
        "source": rests,
        "advised": rate["value"],
        "low": rate["low"],
        "high": rate["high"],
        "checked": checked["advice"]["lr"]["value"],
        "best": new,
    }


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]] or range(len(ROWS))
    done = FOLDER / "rows.json"

    def rows() -> dict[str, dict]:
        return json.loads(done.read_text()) if done.exists() else {}

    for number in (n for n in asked if str(n) not in rows()):
        row = follow(number)
        done.write_text(json.dumps(rows() | {str(number): row}))
        print(number, row, flush=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([rows()[number] for number in sorted(rows())]).to_parquet(TABLE)
