"""``study/analysis/advice.json``: what ``study advise`` knows of the committed studies.

``make figures`` writes it from the tables in ``results/reference``, which the wheel lacks.
"""

import json
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from docs import law
from docs.blocks import QUICK, RESULTS, ROOT
from study.analysis.capacity import FULL, stored_bits
from study.analysis.fits import mean_interval
from study.analysis.law import Setting, short_model
from study.analysis.losses import compared_losses, final_losses
from study.store.files import write_text
from study.store.tables import load_measured
from study.vocabulary.quantities import MODEL_WIDE, TRAIN
from study.vocabulary.sources import BITS, STRING

FILE = ROOT / "study/analysis/advice.json"
GAINS = ("paper_learning_rate", "horizons_small", "longer_training")
LAZY = 1e-4
"""The highest rate of bf16_dead_zone at which outputs grow in proportion to it for 10 steps."""


def text() -> str:
    """The content of the file: a line for each part, with four significant digits."""
    found, rows = law.known(law.law()), law.best_rates()
    found["width"] = {name: law.width(table) for name, table in law.test().items()}
    found["rows"] = {"rates": len(rows), "studies": rows["source"].nunique()}
    found["rows"]["models"] = rows["model"].nunique()
    found["optimizers"] = sorted({*rows["optimizer"], "adam"})  # Adam without decay is AdamW
    found |= {"gains": [*map(gain, GAINS)], "bf16": bf16_sizes(), "capacity": capacity()}
    short = json.loads(json.dumps(found), parse_float=lambda x: float(f"{float(x):.4g}"))
    return "{" + ",\n".join(f'"{key}": {json.dumps(part)}' for key, part in short.items()) + "}\n"


def gain(name: str) -> dict[str, Any]:
    """What ranks gained under LoRA in the longest runs of several seeds, each at its best rate."""
    tables = load_measured(RESULTS / name)
    rows = compared_losses(tables.cells, tables.metrics)
    rows = rows[(rows["how"] == "best") & (rows["scaling"] == "lora")]
    seeds = rows.groupby("steps")["seed"].nunique()
    rows = rows[rows["steps"] == seeds.index[seeds > 1].max()]
    of = rows.pivot(index="seed", columns="rank", values="loss")
    gap = mean_interval(of.iloc[:, -1] - of.iloc[:, 0])
    about = {"source": name, "model": short_model(str(tables.cells["model"].iloc[0]))}
    ends = [int(of.columns[0]), int(of.columns[-1])]
    return {**about, "steps": int(rows["steps"].iloc[0]), "ranks": ends, "gap": gap}


def capacity(name: str = "capacity_small") -> dict[str, Any]:
    """Bits per parameter that adapters stored in the most common number of steps, of the most
    strings: the mean, and the least and the most of a run that did not store nearly all."""
    table = stored_bits(load_measured(RESULTS / name))
    table = table[table["steps"] == table["steps"].mode()[0]]
    table = table[table["offered"] == table["offered"].max()]
    table = table[table["bits"] < FULL * table["offered"]]
    each = table["bits"] / table["parameters"]
    row = table.iloc[0]
    passes = round(row["steps"] * row["batch_size"] / (row["offered"] / (STRING * BITS)))
    about = {"source": name, "model": short_model(str(row["model"])), "passes": passes}
    return {**about, "bits": [each.mean(), each.min(), each.max()]}


def measured_in(name: str, site: str, step: int) -> pd.DataFrame:
    """The probes of a committed study at a site and step, with the settings of their cells."""
    tables = load_measured(RESULTS / name)
    texts = {"cell_id": str, "layer": str, "site": str, "batch": str}
    probes, cells = tables.probes.astype(texts), tables.cells.astype({"cell_id": str})
    asked = (probes["site"] == site) & (probes["step"] == step) & (probes["batch"] == TRAIN)
    settings = ["cell_id", "rank", "alpha", "lr", "scaling", "precision", "contraction"]
    return probes[asked].merge(cells[[n for n in settings if n in cells]], on="cell_id")


def bf16_sizes() -> dict[str, float]:
    """By step: the rms of an adapter's output over that of its layer, for lr M = 1, on SmolLM2."""
    found = {}
    for step in (1, 10):
        sites = [measured_in("bf16_dead_zone", site, step) for site in ("adapter_out", "layer_out")]
        rows = sites[0].merge(sites[1][["cell_id", "layer", "rms"]], on=["cell_id", "layer"])
        rows = rows[(rows["precision"] == "float32") & (rows["lr"] <= LAZY)]
        runs = rows[["rank", "alpha", "scaling"]].to_numpy()
        sized = [Setting(int(r), a, str(of), "adamw").first_move for r, a, of in runs]
        ratio = rows["rms_x"] / rows["rms_y"] / rows["lr"]
        found[str(step)] = float((ratio / sized).median())
    return found


@cache
def facts() -> dict[str, float]:
    """The numbers of the pages on symptoms: SmolLM2, means over seeds."""
    swept = load_measured(RESULTS / "paper_learning_rate")
    ends = final_losses(swept.cells, swept.metrics)
    losses = ends[ends["rank"] == 256].groupby(["scaling", "lr"])["loss"].mean()
    base = float(swept.metrics.loc[swept.metrics["step"] == 0, "eval_loss"].mean())
    slow, high, lost_lr = float(losses["lora"].index.min()), 3e-3, 2e-5
    found = {"steps": int(swept.cells["steps"].iloc[0]), "base": base, "slow_lr": slow}
    found |= {"slow_fall": base - losses["lora", slow], "lora_fall": base - losses["lora"].min()}
    found |= {f"{rule}_lr": float(losses[rule].idxmin()) for rule in ("lora", "rslora")}
    found |= {f"high_{rule}": float(losses[rule, high]) for rule in ("lora", "rslora")}
    norms = measured_in(QUICK, "adapter_grad", 0)
    for rule, rows in norms[norms["layer"] == MODEL_WIDE].groupby("scaling"):
        found[f"{rule}_norm"] = np.polyfit(np.log(rows["rank"]), np.log(rows["norm"]), 1)[0]
    for step in (1, 10):
        rows = measured_in("bf16_dead_zone", "adapter_out", step)
        rows = rows[(rows["rank"] == 4) & (rows["lr"] == lost_lr) & (rows["precision"] == "bf16")]
        rows = rows[(rows["scaling"] == "lora") & (rows["contraction"] == "factored")]
        found[f"lost_{step}"] = float(rows["swallowed"].median())
    return found | {"high_lr": high, "lost_lr": lost_lr}


def write() -> None:
    write_text(FILE, text())


if __name__ == "__main__":
    write()
