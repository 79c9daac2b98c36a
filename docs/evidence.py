"""``study/analysis/advice.json``: what ``study advise`` knows of the committed studies.

``make figures`` writes it from the tables in ``results/reference``, which the wheel lacks.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from docs.blocks import QUICK, RESULTS, ROOT
from docs.external import POWER, fitted, power, rates, usable
from study.analysis.advice import Best, Evidence, Law, Setting, log_output, study_evidence
from study.analysis.fits import mean_interval
from study.analysis.losses import INSIDE, compared_losses, final_losses
from study.analysis.rate_theory import bounds
from study.cli.advise import WIDTHS
from study.store.files import write_text
from study.store.tables import load_measured
from study.vocabulary.quantities import MODEL_WIDE, TRAIN
from study.vocabulary.scaling import RULES

FILE = ROOT / "study/analysis/advice.json"
TINY = "learning_rate_rho_tiny"
LONGER = "longer_training"
OF_STEPS = (TINY, LONGER)
STUDIES = ("paper_learning_rate", "paper_learning_rate_gemma3", "learning_rate_rho", TINY)
GAINS = (*STUDIES[:2], LONGER)
RIVALS = ("rate_rivals", "rate_rivals_gemma3", "rate_rivals_muon", "rho_ends", "rho_ends_gemma3")
"""Of these only the exponents count: nobody trains with their alphas."""
OTHERS: dict[str, Any] = {
    "source": "tinker-cookbook",
    "model": "35 models",
    "optimizer": "adamw",
    "p": 1.0,
    "steps": 780,
    "seeds": 1,
    "rho": None,
}
ALPHA = 32.0
"""That of LoRA Without Regret (Schulman et al. 2025), by the same authors: its file has none."""
LAZY = 1e-4
"""The highest rate of bf16_dead_zone at which outputs grow in proportion to it for 10 steps."""
ENDS = (0.5, 0.05, 0.95)
STEPS_RANGE = (0.0, 0.5)
"""Of the exponent of 1 / steps. Runs of a pretrained model gave 0.08 to 0.26."""


def text() -> str:
    """The content of the file: a line for each row."""
    studies = {name: of_study(name) for name in STUDIES}
    bests = [best for found in studies.values() for best in last_bests(found)]
    laws = [law for found in (*studies.values(), *map(of_study, RIVALS)) for law in found.laws]
    ends = fitted(POWER).found[0], *bounds(usable(), power, fitted(POWER))
    pooled = zip(("exponent", "low", "high"), map(float, ends), strict=True)
    ranks = [best.ranks[0] for best in external_rates()]
    laws.append(Law(**OTHERS, alpha=None, ranks=[1, 128], points=len(ranks), **dict(pooled)))
    parts: dict[str, Any] = {
        "bests": bests,
        "laws": laws,
        "others": external_rates(),
        "horizon": [-float(np.mean([step_law(name)[2] for name in OF_STEPS])), *STEPS_RANGE],
        "gains": [gain for name in GAINS for gain in gains(name)],
        "rho": float(np.exp(np.mean(np.log([*rho_sizes(bests).values()])))),
        "bf16": bf16_sizes(),
    }
    lines = (f'"{key}": {written(part)}' for key, part in parts.items())
    return "{" + ",\n".join(lines) + "}\n"


def written(part: Any) -> str:
    """A part as JSON, with four significant digits."""
    if isinstance(part, list) and isinstance(part[0], Best | Law):
        return "[\n" + ",\n".join(written(asdict(row)) for row in part) + "]"
    return json.dumps(json.loads(json.dumps(part), parse_float=lambda x: float(f"{float(x):.4g}")))


@cache
def of_study(name: str) -> Evidence:
    tables = load_measured(RESULTS / name)
    return study_evidence(tables, name)


def last_bests(found: Evidence) -> list[Best]:
    """The best rates at the last horizon, without those at an edge."""
    last = max(best.steps for best in found.bests)
    return [best for best in found.bests if best.steps == last and not best.edge]


def step_law(name: str) -> tuple[int, int, float]:
    """The fewest and the most steps, and the exponent with them: the mean over rules and ranks."""
    bests = [best for best in of_study(name).bests if not best.edge]
    rows = pd.DataFrame([{**asdict(best), "rank": best.ranks[0]} for best in bests])
    rules = [rule for _, rule in rows.groupby(["p", "alpha", "rank"])]
    rules = [rule for rule in rules if rule["steps"].max() >= 2 * rule["steps"].min()]
    lines = [np.polyfit(np.log(rule["steps"]), np.log(rule["lr"]), 1) for rule in rules]
    return int(rows["steps"].min()), int(rows["steps"].max()), float(np.mean(lines, axis=0)[0])


def rho_sizes(bests: Sequence[Best]) -> dict[str, float]:
    """By model, rho over the product of width, rate and steps: the median of the best rates."""
    found: dict[str, list[float]] = {}
    for one in (best for best in bests if best.rho and best.model in WIDTHS):
        size = one.rho / (WIDTHS[one.model] * one.lr * one.steps)
        found.setdefault(one.model, []).append(size)
    return {model: float(np.median(found[model])) for model in WIDTHS if model in found}


def gains(name: str) -> list[dict[str, Any]]:
    tables, found = load_measured(RESULTS / name), []
    best = compared_losses(tables.cells, tables.metrics).query("how == 'best'")
    for (rule, steps), rows in best.groupby(["scaling", "steps"], observed=True):
        of = rows.pivot(index="seed", columns="rank", values="loss")
        about = {"source": name, "model": str(tables.cells["model"].iloc[0]), "p": RULES[rule].p}
        gap = mean_interval(of.iloc[:, -1] - of.iloc[:, 0])
        ends = [int(of.columns[0]), int(of.columns[-1])]
        found.append({**about, "steps": int(steps), "ranks": ends, "gap": gap})
    return found


def external_rates() -> list[Best]:
    """Per rank the median best rate over models, and its quantiles :data:`ENDS`."""
    found = []
    for rank, rows in rates()[rates()["edge"] == INSIDE].groupby("rank"):
        lr, low, high = map(float, np.quantile(np.exp(rows["log_lr"]), ENDS))
        here = {"ranks": [rank], "alpha": ALPHA, "ratio": 1.0, "edge": INSIDE}
        found.append(Best(**OTHERS, **here, lr=lr, low=low, high=high))
    return found


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
        sized = [log_output(Setting(int(r), a, RULES[str(of)].p, "adamw")) for r, a, of in runs]
        ratio = rows["rms_x"] / rows["rms_y"] / rows["lr"]
        found[str(step)] = float((ratio / np.exp(sized)).median())
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
