"""``study serve-check``: what servers multiply a PEFT adapter by, if they ignore some keys."""

import csv
import math
from pathlib import Path

import pandas as pd

from study.training.peft_format import PeftAdapter

SERVERS = list(csv.DictReader(Path(__file__).with_name("servers.csv").read_text().splitlines()))
"""What servers read. ``reads``: keys of ``adapter_config.json`` that change the factor;
``rank_pattern`` if it divides by the tensors' rank. ``unknown``: keys of which nothing is known.
``whole``: whether ``lora_alpha`` must be written without a point. ``since``: the source."""


def served(adapter: PeftAdapter) -> pd.DataFrame:
    """A row for each server and each group of kinds of layers of one rank and gamma, by which PEFT
    multiplies. ``factor``: the server's; NaN if it is not known or if the adapter is refused."""
    config = adapter.config
    kinds: dict[tuple[int, float], dict[str, None]] = {}
    for layer, pair in adapter.pairs.items():
        kinds.setdefault((pair.A_RD.shape[-2], pair.gamma), {})[layer.rpartition(".")[2]] = None
    rows = []
    for server in SERVERS:
        open_keys = [key for key in server["unknown"].split() if config.get(key)]
        for (rank, gamma), names in kinds.items():
            factor, result = _factor(server["reads"].split(), adapter, rank, gamma), "as PEFT"
            if server["whole"] and isinstance(config["lora_alpha"], float):
                factor, result = math.nan, f"refuses lora_alpha={config['lora_alpha']}"
            elif open_keys:
                factor, result = math.nan, f"not known with {open_keys[0]}"
            elif not math.isclose(factor, gamma, rel_tol=1e-6):
                times = max(gamma / factor, factor / gamma)
                result = f"{times:.3g} times too {'weak' if factor < gamma else 'strong'}"
            row = {"server": server["server"], "layers": ", ".join(names), "gamma": gamma}
            rows.append(row | {"factor": factor, "result": result})
    return pd.DataFrame(rows)


def _factor(reads: list[str], adapter: PeftAdapter, rank: int, gamma: float) -> float:
    root, config = 0.5 if adapter.scaling == "rslora" else 1.0, adapter.config
    alpha = gamma * rank**root if "alpha_pattern" in reads else config["lora_alpha"]
    divisor = rank if "rank_pattern" in reads else config["r"]
    return float(alpha / divisor ** (root if "use_rslora" in reads else 1.0))


def verdict(rows: pd.DataFrame) -> str:
    wrong = rows[(rows["factor"] / rows["gamma"] - 1).abs() > 1e-6]
    refused = rows[rows["result"].str.startswith("refuses")]
    if wrong.empty and refused.empty:
        return "Servers multiply it as PEFT does, where that is known (study serve-check)."
    named = ", ".join(dict.fromkeys([*wrong["server"], *refused["server"]]))
    return f"Other factors than PEFT's: {named} (study serve-check). study fold removes the cause."
