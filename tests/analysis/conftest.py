"""Synthetic studies with known laws, and an assertion that prints what was found beside what was expected."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import pytest

RANKS = (4, 16, 64, 256, 1024)
LAYERS = tuple(
    (f"model.layers.{block}.{kind}", block, kind.split(".")[1])
    for block in range(3)
    for kind in ("self_attn.q_proj", "mlp.down_proj")
)
MODEL_WIDE = (("model", -1, "model"),)

Law = Callable[[Mapping[str, Any], int, int], float]


@pytest.fixture(scope="session")
def study() -> Callable[..., tuple[pd.DataFrame, pd.DataFrame]]:
    """A builder of ``(cells, probes)``; every keyword that holds a list or tuple of cell values is swept."""

    def build(
        laws: Mapping[tuple[str, str], Law],
        *,
        layers: Sequence[tuple[str, int, str]] = LAYERS,
        steps: Sequence[int] = (0,),
        batch: str = "train",
        dtype: str = "float64",
        **axes: Any,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """``laws[site, stat](cell, layer number, step)`` is the statistic; a model-wide row takes layer -1."""
        defaults = {
            "study": "s",
            "model": "m",
            "quant_bits": math.nan,
            "data": "d",
            "optimizer": "sgd",
            "lr": 1e-3,
            "rank": RANKS,
            "scaling": "lora",
        }
        defaults |= {
            "exponent": math.nan,
            "alpha": 16.0,
            "init": "kaiming",
            "targets": "all-linear",
            "seed": (0, 1, 2),
        }
        grid = {
            key: value if isinstance(value, (list, tuple)) else [value]
            for key, value in (defaults | axes).items()
        }
        cells = pd.DataFrame(
            [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        )
        cells["rank"] = cells["rank"].astype(float)
        cells["data_seed"] = cells["seed"]
        cells["gamma"] = 16 / cells["rank"]
        cells["status"] = "complete"
        cells["cell_id"] = [f"{k:012x}" for k in range(len(cells))]

        rows = []
        for cell, step, (site, stat) in itertools.product(cells.to_dict("records"), steps, laws):
            model_wide = site in ("adapter_grad", "adapter_update")
            for number, (layer, block, kind) in enumerate(MODEL_WIDE if model_wide else layers):
                value = laws[site, stat](cell, -1 if model_wide else number, step)
                key = {
                    "cell_id": cell["cell_id"],
                    "step": step,
                    "layer": layer,
                    "block": block,
                    "kind": kind,
                    "site": site,
                }
                rows.append(key | {"batch": batch, "stat": stat, "value": value})
        keys = ["cell_id", "step", "layer", "block", "kind", "site", "batch"]
        probes = (
            pd.DataFrame(rows).set_index([*keys, "stat"])["value"].unstack("stat").reset_index()
        )
        probes.columns.name = None
        for name in ("cell_id", "layer", "kind", "site", "batch"):
            probes[name] = probes[name].astype("category")
        stats = [name for name in probes if name not in keys]
        return cells, probes.astype(dict.fromkeys(stats, dtype))

    return build


@pytest.fixture(scope="session")
def assert_exponent() -> Callable[..., None]:
    """``assert_exponent(row, expected, tol)``: one row of ``exponents`` against a number, saying all it knows."""

    def check(row: pd.Series | pd.DataFrame, expected: float, tol: float) -> None:
        if isinstance(row, pd.DataFrame):
            assert len(row) == 1, f"{len(row)} rows, not one:\n{row.to_string()}"
            row = row.iloc[0]
        off = abs(row["exponent"] - expected)
        assert off <= tol, (
            f"{row['site']} {row['stat']} at step {row['step']} ({row['kind']}, {row['layer']}): "
            f"exponent {row['exponent']:.6g} [{row['ci_low']:.6g}, {row['ci_high']:.6g}] "
            f"over {row['interval']} ({row['seeds']} seeds, {row['ranks']} ranks), "
            f"expected {expected:.6g} ± {tol:.2g}, off by {off:.2g}; predicted {row['predicted']:.6g}"
        )

    return check
