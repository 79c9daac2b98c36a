"""``study/analysis/advice.json``: what ``study advise`` knows of the committed studies.

``make figures`` writes it from the tables in ``results/reference``, which the wheel lacks.
"""

import json
import math
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import pandas as pd

from research import external, law, plane
from research.blocks import RESULTS, ROOT, study_tables
from study.analysis.advice import LEAST_RANK
from study.analysis.capacity import FULL, best_stored
from study.analysis.fits import mean_interval
from study.analysis.law import Setting, short_model
from study.analysis.plane import FEWEST_SEEDS
from study.store.tables import load_measured
from study.vocabulary.quantities import TRAIN

FILE = ROOT / "study/analysis/advice.json"
GAINS = ("horizons", "horizons_long", "horizons_small")
RULES = ("lora", "rslora")
STEPS = (64, 256, 1024)
SWEEPS = ROOT / "results/external/sweeps.csv"
COLLAPSE = {"rule": "rslora", "rank": 256, "alpha": 512, "lr": 2e-4, "base": 1.34}
"""A run of ``matryoshka-fr2de`` in :data:`SWEEPS`, whose alpha is gamma r. ``base``: the held-out
loss before training, which its authors published beside it."""
LAZY = 1e-4
"""The highest rate of bf16_dead_zone at which outputs grow in proportion to it for 10 steps."""


def text() -> str:
    """The content of the file: a line for each part, with four significant digits."""
    found, rows = law.known(law.law()), law.best_rates()
    tables = law.test(keeps=True)
    found["width"] = {name: law.width(table) for name, table in tables.items()}
    found["distance"] = law.distance_of(tables["alone"])
    found["rows"] = {"rates": len(rows), "studies": rows["source"].nunique()}
    found["rows"]["models"] = rows["model"].nunique()
    found["optimizers"] = sorted({*rows["optimizer"], "adam"})  # Adam without decay is AdamW
    found["test"] = tested()
    found |= {"gains": [row for name in GAINS for row in gains(name)], "bf16": bf16_sizes()}
    found |= {"capacity": capacity(), "alphas": [*alphas()]}
    found |= {"alphas_elsewhere": alphas_elsewhere(), "collapse": collapse()}
    short = json.loads(json.dumps(found), parse_float=lambda x: float(f"{float(x):.4g}"))
    return "{" + ",\n".join(f'"{key}": {json.dumps(part)}' for key, part in short.items()) + "}\n"


def tested() -> dict[str, Any]:
    """The median errors in sweeps of others that were left out of the fit, as factors: of a
    ``ratio`` between ranks, and of a ``rate`` alone; each sweep counts once. ``largest``: weights
    of the largest model of a sweep that gives its alpha."""
    tables = law.test(keeps=True)
    found = pd.concat(tables.values(), ignore_index=True).query("is_theirs")
    off = found.groupby(["kind", "source"])["off"].median().groupby("kind")
    ratio, rate = (float(off.median().map(math.exp)[kind]) for kind in ("rank", "alone"))
    largest = float(external.others()["billions"].max()) * 1e9
    return {"sweeps": int(off.size()["rank"]), "ratio": ratio, "rate": rate, "largest": largest}


def gains(name: str) -> Iterator[dict[str, Any]]:
    """What ranks gained in the longest runs of several seeds, each at its best rate: a row for each
    rule and pair of ranks."""
    tables = study_tables(name)
    best = tables.losses.query("how == 'best'").astype({"scaling": str})
    about = {"source": name, "model": short_model(str(tables.cells["model"].iloc[0]))}
    for rule in RULES:
        own = best[best["scaling"] == rule]
        seeds = own.groupby("steps")["seed"].nunique()
        steps = int(seeds.index[seeds > 1].max())
        own = own[own["steps"] == steps]
        about |= {"rule": rule, "alpha": float(own["alpha"].iloc[0]), "steps": steps}
        of_rank = own.pivot(index="seed", columns="rank", values="loss")
        for low, high in combinations(sorted(of_rank), 2):
            gap = mean_interval((of_rank[high] - of_rank[low]).dropna())
            yield {**about, "ranks": [int(low), int(high)], "gap": gap}


def alphas() -> Iterator[dict[str, Any]]:
    """What alpha 16 costs on the two planes of several steps: a row for each model, number of steps
    and rank from 16 on with as many seeds as an interval needs, and an alpha at least twice as
    large."""
    for model, steps in product(("small", "smollm2"), STEPS):
        for rank, row in plane.usual_costs(model, str(steps)).iterrows():
            is_known = row["seeds"] >= FEWEST_SEEDS and row["against"] >= 2 * plane.USUAL
            if rank >= LEAST_RANK and is_known:
                about = {"model": model, "steps": steps, "rank": int(rank), "alpha": plane.USUAL}
                cost = [row["cost"], row["ci_low"], row["ci_high"]]
                seeds = {"seeds": int(row["seeds"])}
                yield about | seeds | {"against": float(row["against"]), "cost": cost}


def alphas_elsewhere() -> dict[str, Any]:
    """Of a published model with two alphas tried over rates, on two data sets: the alphas (gamma r)
    and the larger difference of their lowest losses."""
    runs = pd.read_csv(SWEEPS).query("model == 'Llama-3.1-8B-Instruct' and rank == 32")
    runs = runs[runs["source"].str.startswith("matryoshka") & runs["alpha"].round().isin([64, 362])]
    lowest = runs.groupby(["data", "alpha"])["loss"].min().unstack()
    apart = lowest.max(axis=1) - lowest.min(axis=1)
    about = {"model": "Llama-3.1-8B-Instruct", "rank": 32, "alphas": [*map(round, lowest)]}
    return {**about, "data": len(lowest), "apart": float(apart.max())}


def collapse() -> dict[str, Any]:
    """The run of :data:`COLLAPSE` with its model, length and held-out loss at the end."""
    runs = pd.read_csv(SWEEPS).query("source == 'matryoshka-fr2de'")
    alpha = COLLAPSE["alpha"] * COLLAPSE["rank"] ** 0.5
    is_it = (runs["rank"] == COLLAPSE["rank"]) & (runs["lr"] == COLLAPSE["lr"])
    [run] = runs[is_it & (runs["alpha"].sub(alpha).abs() < 1)].to_dict("records")
    return {**COLLAPSE, **{name: run[name] for name in ("model", "steps", "batch", "loss")}}


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
