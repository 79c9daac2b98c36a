"""``study/analysis/evidence.json``: what ``study advise`` knows of the committed studies.

The wheel holds this file and none of the tables in ``results/reference``, which it is made from.
``make figures`` writes it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from docs.blocks import QUICK, RESULTS, ROOT
from docs.external import TABLE, exponents
from study.analysis.advice import Best, Evidence, Setting, log_move, study_evidence
from study.analysis.fits import mean_interval
from study.analysis.losses import INSIDE, final_losses
from study.analysis.rates import bottom
from study.store.files import write_text
from study.store.tables import load_measured
from study.vocabulary.quantities import MODEL_WIDE, TRAIN

FILE = ROOT / "study/analysis/evidence.json"
STUDIES = ("paper_learning_rate", "learning_rate_rho", "learning_rate_rho_tiny")
"""The studies that swept learning rates at several ranks."""
OTHERS = {"source": "tinker-cookbook", "model": "35 models", "optimizer": "adamw"}
WIDTHS = {"tiny": 64, "smollm2": 576}
ALPHA, STEPS = 32.0, 780
"""Of the sweep in ``results/external``. Its file has no alpha: 32 is that of LoRA Without Regret
(Schulman et al. 2025), by the same authors."""
ENDS = (0.05, 0.95)
"""Quantiles over models or rules."""
DIGITS = 4


def text() -> str:
    """The content of the file."""
    studies = {name: of_study(name) for name in STUDIES}
    bests = [asdict(best) for found in studies.values() for best in last_bests(found)]
    external = exponents()
    pooled = mean_interval(external["exponent"])
    of_others = {**OTHERS, "p": 1.0, "steps": STEPS, "seeds": 1}
    law = {**of_others, "alpha": None, "rank_min": 1, "rank_max": 128}
    law |= dict(zip(("exponent", "low", "high"), pooled, strict=True))
    slopes = horizon_slopes(studies["learning_rate_rho_tiny"].bests)
    content = {
        "bests": bests,
        "laws": [*(asdict(law) for found in studies.values() for law in found.laws), law],
        "others": [{**of_others, **row} for row in external_rates()],
        "horizon": [-float(np.quantile(slopes, q)) for q in (0.5, *ENDS)],
        "rho": rho_size(bests),
        "bf16": bf16_sizes(),
        "facts": facts(),
    }
    return json.dumps(rounded(content), indent=0) + "\n"


def of_study(name: str) -> Evidence:
    """What a committed study measured."""
    tables = load_measured(RESULTS / name)
    return study_evidence(tables.cells, tables.metrics, tables.probes, name)


def last_bests(found: Evidence) -> list[Best]:
    """The best rates at the last horizon, without those at an edge."""
    last = max(best.steps for best in found.bests)
    return [best for best in found.bests if best.steps == last and not best.edge]


def horizon_slopes(bests: Sequence[Best]) -> list[float]:
    """d log lr / d log steps of each rule and rank, by a line through its horizons."""
    rows = pd.DataFrame([asdict(best) for best in bests if not best.edge])
    found = []
    for _, rule in rows.groupby(["p", "alpha", "rank"]):
        if len(rule) > 2:
            found.append(float(np.polyfit(np.log(rule["steps"]), np.log(rule["lr"]), 1)[0]))
    return found


def rho_size(bests: list[dict[str, Any]]) -> float:
    """The median of rho over the product of width, rate and steps, of two models alike."""
    medians = []
    for model, width in WIDTHS.items():
        own = [best for best in bests if best["model"] == model and best["rho"]]
        sizes = [best["rho"] / (width * best["lr"] * best["steps"]) for best in own]
        medians.append(np.median(sizes))
    return float(np.exp(np.mean(np.log(medians))))


def external_rates() -> list[dict[str, float]]:
    """Per rank the median best rate over models, and its quantiles :data:`ENDS`."""
    runs = pd.read_csv(TABLE).groupby(["model", "rank", "lr"], as_index=False)["nll"].mean()
    rows: dict[int, list[float]] = {}
    for (_, rank), here in runs.groupby(["model", "rank"]):
        best = bottom(here["lr"].to_numpy(), here["nll"].to_numpy())
        if best.edge == INSIDE:
            rows.setdefault(int(rank), []).append(best.lr)
    return [
        {"rank": rank, "alpha": ALPHA, "ratio": 1.0}
        | dict(zip(("lr", "low", "high"), map(float, np.quantile(lrs, (0.5, *ENDS))), strict=True))
        for rank, lrs in sorted(rows.items())
    ]


def bf16_sizes() -> dict[str, float]:
    """By step: the rms of an adapter's output over that of its layer, for lr M = 1, on SmolLM2."""
    tables = load_measured(RESULTS / "bf16_dead_zone")
    cells = tables.cells[tables.cells["precision"] == "float32"].astype({"cell_id": str})
    probes = tables.probes.astype({"cell_id": str, "layer": str})
    rows = probes[probes["batch"] == TRAIN].merge(
        cells[["cell_id", "rank", "alpha", "lr"]], on="cell_id"
    )
    keys = ["cell_id", "layer", "step", "rank", "alpha", "lr"]
    sizes = rows.pivot_table(index=keys, columns="site", values="rms", observed=True).reset_index()
    moves = [
        lr * np.exp(log_move(Setting(int(rank), alpha, 1.0, "adamw")))
        for rank, alpha, lr in sizes[["rank", "alpha", "lr"]].to_numpy()
    ]
    share = sizes["adapter_out"] / sizes["layer_out"] / moves
    medians = share[sizes["step"] > 0].groupby(sizes["step"]).median()
    return {str(step): float(value) for step, value in medians.items()}


def facts() -> dict[str, float]:
    """The numbers of ``study advise --symptom``: means over seeds, SmolLM2."""
    swept = load_measured(RESULTS / "paper_learning_rate")
    ends = final_losses(swept.cells, swept.metrics, swept.probes)
    losses = ends[ends["rank"] == 256].groupby(["scaling", "lr"])["loss"].mean()
    base = float(swept.metrics.loc[swept.metrics["step"] == 0, "eval_loss"].mean())
    slow, high = losses["lora"].index.min(), 3e-3
    norm = {rule: norm_slope(rule) for rule in ("lora", "rslora")}
    lost_lr = 2e-5
    lost = _lost(lost_lr)
    return {
        "steps": int(swept.cells["steps"].iloc[0]),
        "base": base,
        "slow_lr": slow,
        "slow_fall": base - losses["lora", slow],
        "lora_lr": losses["lora"].idxmin(),
        "lora_fall": base - losses["lora"].min(),
        "high_lr": high,
        "high_lora": losses["lora", high],
        "high_rslora": losses["rslora", high],
        "rslora_lr": losses["rslora"].idxmin(),
        "lora_norm": norm["lora"],
        "rslora_norm": norm["rslora"],
        "lost_lr": lost_lr,
        "lost_1": lost[1],
        "lost_10": lost[10],
    }


def norm_slope(rule: str) -> float:
    """The exponent of the gradient norm with the rank at step 0, in the mean over seeds."""
    tables = load_measured(RESULTS / QUICK)
    cells = tables.cells[tables.cells["scaling"] == rule].astype({"cell_id": str})
    probes = tables.probes.astype({"cell_id": str, "layer": str, "site": str})
    is_norm = (probes["layer"] == MODEL_WIDE) & (probes["site"] == "adapter_grad")
    rows = probes[is_norm & (probes["step"] == 0) & (probes["batch"] == TRAIN)]
    rows = rows.merge(cells[["cell_id", "rank"]], on="cell_id")
    return float(np.polyfit(np.log(rows["rank"]), np.log(rows["norm"]), 1)[0])


def _lost(lr: float) -> dict[int, float]:
    """By step the median over layers of ``swallowed`` in factored bf16 at rank 4."""
    tables = load_measured(RESULTS / "bf16_dead_zone")
    cells = tables.cells
    is_asked = (cells["precision"] == "bf16") & (cells["rank"] == 4) & (cells["lr"] == lr)
    is_asked &= cells["contraction"] == "factored"
    ids = set(cells.loc[is_asked, "cell_id"].astype(str))
    rows = tables.probes[tables.probes["cell_id"].astype(str).isin(ids)]
    found = rows[rows["swallowed"].notna()].groupby("step")["swallowed"].median()
    return {int(step): float(value) for step, value in found.items()}


def rounded(value):
    """``value`` with every float rounded to :data:`DIGITS` significant digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def write() -> None:
    write_text(FILE, text())


if __name__ == "__main__":
    write()
