"""``study/analysis/advice.json``: what ``study advise`` knows of the committed studies.

``make figures`` writes it from the tables in ``results/reference``, which the wheel lacks.
"""

import json
from typing import Any

import pandas as pd

from docs import law
from docs.blocks import RESULTS, ROOT, study_tables
from docs.horizons import gaps
from study.analysis.capacity import FULL, best_stored
from study.analysis.fits import mean_interval
from study.analysis.law import Setting, short_model
from study.store.tables import load_measured
from study.vocabulary.quantities import TRAIN

FILE = ROOT / "study/analysis/advice.json"
GAINS = ("horizons", "horizons_small")
LAZY = 1e-4
"""The highest rate of bf16_dead_zone at which outputs grow in proportion to it for 10 steps."""


def text() -> str:
    """The content of the file: a line for each part, with four significant digits."""
    found, rows = law.known(law.law()), law.best_rates()
    tested = law.test(keeps=True)
    found["width"] = {name: law.width(table) for name, table in tested.items()}
    found["distance"] = law.distance_of(tested["alone"])
    found["rows"] = {"rates": len(rows), "studies": rows["source"].nunique()}
    found["rows"]["models"] = rows["model"].nunique()
    found["optimizers"] = sorted({*rows["optimizer"], "adam"})  # Adam without decay is AdamW
    found |= {"gains": [*map(gain, GAINS)], "bf16": bf16_sizes(), "capacity": capacity()}
    short = json.loads(json.dumps(found), parse_float=lambda x: float(f"{float(x):.4g}"))
    return "{" + ",\n".join(f'"{key}": {json.dumps(part)}' for key, part in short.items()) + "}\n"


def gain(name: str) -> dict[str, Any]:
    """What ranks gained under LoRA in the longest runs of several seeds, each at its best rate."""
    tables = study_tables(name)
    best = tables.losses.query("how == 'best' and scaling == 'lora'")
    seeds = best.groupby("steps")["seed"].nunique()
    steps = int(seeds.index[seeds > 1].max())
    about = {"source": name, "model": short_model(str(tables.cells["model"].iloc[0]))}
    ends = [int(best["rank"].min()), int(best["rank"].max())]
    gap = mean_interval(gaps("lora", str(steps), name))
    return {**about, "steps": steps, "ranks": ends, "gap": gap}


def capacity(name: str = "capacity_small") -> dict[str, Any]:
    """Bits per parameter that adapters stored of the most strings in the most common number of
    passes, each rank at its best rate: the mean, and the least and the most of a run that did not
    store nearly all. Fewer strings are fewer steps, which limit what is stored."""
    table = best_stored(load_measured(RESULTS / name))
    passes = table["passes"].mode()[0]
    table = table[table["passes"] == passes]
    table = table[table["offered"] == table["offered"].max()]
    table = table[table["bits"].between(0, FULL * table["offered"])]
    each = table["bits"] / table["parameters"]
    about = {"source": name, "model": short_model(str(table["model"].iloc[0]))}
    return {**about, "passes": int(passes), "bits": [each.mean(), each.min(), each.max()]}


def bf16_sizes() -> dict[str, float]:
    """By step: the rms of an adapter's output over that of its layer, for lr M = 1, on SmolLM2."""
    tables = load_measured(RESULTS / "bf16_dead_zone")
    probes = tables.probes[tables.probes["batch"] == TRAIN].astype({"cell_id": str, "site": str})
    rms = probes.pivot(index=["step", "cell_id", "layer"], columns="site", values="rms")
    cells = tables.cells[(tables.cells["precision"] == "float32") & (tables.cells["lr"] <= LAZY)]
    runs = cells.astype({"cell_id": str}).set_index("cell_id")
    sizes = pd.Series(
        {
            cell: run["lr"] * Setting(run["rank"], run["alpha"], run["scaling"], "adamw").first_move
            for cell, run in runs.iterrows()
        }
    )
    ratio = (rms["adapter_out"] / rms["layer_out"]).div(sizes, level="cell_id").dropna()
    return {str(step): float(ratio[step].median()) for step in (1, 10)}
