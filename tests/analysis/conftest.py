"""Synthetic studies with known laws."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

RANKS = (4, 16, 64, 256, 1024)
LAYERS = tuple(
    (f"model.layers.{block}.{kind}", block, kind.split(".")[1])
    for block in range(3)
    for kind in ("self_attn.q_proj", "mlp.down_proj")
)
MODEL_WIDE = (("model", -1, "model"),)

Law = Callable[[Mapping[str, Any], int, int], float]


def study_of(
    laws: Mapping[tuple[str, str], Law],
    *,
    layers: Sequence[tuple[str, int, str]] = LAYERS,
    steps: Sequence[int] = (0,),
    **axes: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``(cells, probes)``. Keywords with a list or tuple of cell values are swept.

    ``laws[site, stat](cell, layer number, step)`` is the statistic. The layer number of a
    model-wide row is -1.
    """
    defaults = {"study": "s", "model": "m", "quant_bits": math.nan, "data": "d"}
    defaults |= {"optimizer": "sgd", "lr": 1e-3, "rank": RANKS, "scaling": "lora"}
    defaults |= {"exponent": math.nan, "alpha": 16.0, "init": "kaiming", "targets": "all-linear"}
    grid = defaults | {"seed": (0, 1, 2)} | axes
    choices = [v if isinstance(v, (list, tuple)) else [v] for v in grid.values()]
    swept = [dict(zip(grid, values, strict=True)) for values in itertools.product(*choices)]
    cells = pd.DataFrame(swept).astype({"rank": float})
    cells = cells.assign(data_seed=cells["seed"], gamma=16 / cells["rank"], status="complete")
    cells["seconds"] = 60.0
    cells["cell_id"] = [f"{k:012x}" for k in range(len(cells))]
    rows = []
    for cell, step, (site, stat) in itertools.product(cells.to_dict("records"), steps, laws):
        model_wide = site in ("adapter_grad", "adapter_update")
        for number, (layer, block, kind) in enumerate(MODEL_WIDE if model_wide else layers):
            value = laws[site, stat](cell, -1 if model_wide else number, step)
            rows.append((cell["cell_id"], step, layer, block, kind, site, "train", stat, value))
    keys = ["cell_id", "step", "layer", "block", "kind", "site", "batch"]
    long = pd.DataFrame(rows, columns=[*keys, "stat", "value"])
    probes = long.set_index([*keys, "stat"])["value"].unstack("stat").reset_index()
    probes.columns.name = None
    for name in ("cell_id", "layer", "kind", "site", "batch"):
        probes[name] = probes[name].astype("category")
    return cells, probes
