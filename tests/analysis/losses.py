"""Cells and held-out losses of sweeps whose losses are a known function."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

RANKS = (4, 16, 64, 256)
RATES = tuple(10.0 ** np.arange(-6, 0, 0.5))
LORA = (("lora", math.nan),)
POWER = (("power", 0.0),)
BASE = {"study": "s", "model": "m", "data": "d", "optimizer": "adamw", "init": "kaiming"}
BASE |= {"targets": "all-linear"}
NO_PROBES = pd.DataFrame(
    {name: [] for name in ("cell_id", "step", "layer", "site", "batch", "rms")}
)
Loss = Callable[[dict[str, Any]], float]


def p_of(cell: dict[str, Any]) -> float:
    return {"lora": 1.0, "rslora": 0.5}.get(cell["scaling"], cell["exponent"])


def runs(
    loss: Loss,
    *,
    rates: Sequence[float] = RATES,
    rules: Sequence[tuple[str, float]] = (*LORA, ("rslora", math.nan), *POWER),
    ranks: Sequence[int] = RANKS,
    seeds: Sequence[int] = (0, 1, 2),
    alphas: Sequence[float] = (16.0,),
    steps: Sequence[int] = (50,),
    **fixed: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``cells`` and ``metrics``. ``loss``: held-out, of a cell and step; NaN: it diverged."""
    cells, metrics = [], []
    axes = itertools.product(rules, ranks, rates, alphas, seeds)
    for (scaling, exponent), rank, lr, alpha, seed in axes:
        cell = BASE | {"cell_id": f"{len(cells):05d}", "scaling": scaling, "exponent": exponent}
        cell |= {"rank": float(rank), "lr": lr, "alpha": alpha, "seed": seed, "data_seed": seed}
        cell |= fixed
        cell["gamma"] = cell["alpha"] * rank ** -p_of(cell)
        losses = {0: 9.0} | {step: loss(cell | {"step": step}) for step in steps}
        metrics += [
            {"cell_id": cell["cell_id"], "step": step, "eval_loss": value}
            for step, value in losses.items()
        ]
        status = "complete" if math.isfinite(losses[steps[-1]]) else "diverged"
        cells.append({"status": status, "seconds": 60.0} | cell)
    return pd.DataFrame(cells), pd.DataFrame(metrics)


def basin(law: Callable[[float, float], float], centre: float = 3e-3) -> Loss:
    """A parabola in log lr with its minimum at ``centre * r ** law(p, seed)``."""
    return lambda c: (
        2.0
        + 0.05 * (math.log(c["lr"]) - math.log(centre * c["rank"] ** law(p_of(c), c["seed"]))) ** 2
    )
