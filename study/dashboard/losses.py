"""Final held-out losses: against the rank, and against the learning rate.

The comparisons and the best rates are those of :mod:`study.analysis.losses`.
"""

import math
from typing import Any

import pandas as pd

from study.analysis import compared_losses
from study.analysis.losses import final_losses
from study.figures import style
from study.figures.selection import Rule
from study.vocabulary.quantities import METRICS

HOW = {
    "fixed": "one learning rate",
    "best": "best rate of each rank",
    "matched": "step size of rsLoRA",
}
"""What the compared runs have in common, in words."""
AXIS = f"final {METRICS['eval_loss'].label} ({METRICS['eval_loss'].unit})"


def held_out(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> dict[str, Any]:
    """The losses of the cells that have ended.

    - ``runs``: a row per cell, for the losses against the learning rate;
    - ``compared``: the rows of :func:`study.analysis.compared_losses`;
    - ``group`` of a row is a number: ranks, rules and learning rates compare within a group;
    - ``groups``: the group by cell id.

    A loss is null if the run diverged.
    """
    runs = final_losses(cells, metrics, probes)
    compared = compared_losses(cells, metrics, probes)
    return {
        "runs": [_row(row) for row in runs.to_dict("records")],
        "compared": [
            {**_row(row), "how": row["how"], "edge": row["edge"] != ""}
            for row in compared.to_dict("records")
        ],
        "groups": {row["cell_id"]: int(row["setting"]) for row in runs.to_dict("records")},
    }


def _row(row: dict[Any, Any]) -> dict[str, Any]:
    loss = float(row["loss"])
    return {
        "rule": style.gid(Rule.of(str(row["scaling"]), float(row["exponent_p"]))),
        "group": int(row["setting"]),
        "rank": int(row["rank"]),
        "seed": int(row["seed"]),
        "lr": float(row["lr"]),
        "loss": loss if math.isfinite(loss) else None,
    }
