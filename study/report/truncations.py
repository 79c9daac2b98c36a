"""The report's section on adapters cut to a lower rank after training."""

from typing import Any

import numpy as np

from study.analysis import truncated_losses, truncation_effects
from study.analysis.losses import KEPT
from study.report.formatting import (
    number_list,
    percent,
    row_list,
    rule_of_row,
    signed_interval,
)
from study.report.markdown import Block, Details, table
from study.store import StudyTables
from study.vocabulary.optimizers import label


def truncation_section(tables: StudyTables) -> list[Block]:
    """Every trained rank and the ranks it can be cut to; empty if no adapter was cut."""
    effects = truncation_effects(truncated_losses(tables.cells, tables.truncations))
    if effects.empty:
        return []
    several_rates = bool(effects.groupby("optimizer", observed=True)["lr"].nunique().max() > 1)
    heads = ["optimizer", "rule", *(["lr"] if several_rates else []), "trained rank"]
    heads += ["held-out loss", "gain", f"rank that keeps {percent(KEPT)} of the gain"]
    heads += ["loss if cut to the lowest rank", "minus the loss of the run of that rank"]
    return [
        "## How much of its rank does a trained adapter need?",
        Details(
            "Table: the loss of adapters cut to a lower rank after training",
            table(heads, [_cells(row, several_rates) for row in row_list(effects)])
            + "\n\nAfter training, γBA of every layer is cut to its k largest singular directions. "
            "It is not trained further. *Gain* is the decrease of the loss from the base model. "
            "The last column is positive if the run trained at the lowest rank found a better "
            "adapter of that rank. Losses are in nats per token, means over seeds.",
        ),
    ]


def _cells(row: Any, several_rates: bool) -> list[str]:
    return [
        label(row.optimizer),
        rule_of_row(row),
        *([f"{row.lr:g}"] if several_rates else []),
        number_list([row.rank]),
        f"{row.loss:.4f}",
        "" if np.isnan(row.gained) else f"{row.gained:+.4f}",
        "" if np.isnan(row.needed) else number_list([row.needed]),
        "" if np.isnan(row.cut) else f"{row.cut:.4f} (rank {row.lowest:g})",
        "" if np.isnan(row.beyond) else signed_interval(row.beyond, row.ci_low, row.ci_high),
    ]
