"""What a figure reads: the tables of a study, split into settings, rules, ranks and seeds.

A *family* is one setting: one model, data set, optimizer, learning rate and so on. Within a family
only the scaling rule, the rank and the seed differ. Every family has panels of its own, so that a
figure never mixes settings.
"""

import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from study.analysis.grouping import curve_labels, distinguishing, end_steps
from study.errors import StudyError, printable
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import MODEL_WIDE, TRAIN
from study.vocabulary.scaling import RULES, rule_label
from study.vocabulary.sources import model_label

T = TypeVar("T")
Tables = StudyTables

MOST_NAMED = 3
"""Rules that a sentence names; more are counted."""


class Absent(StudyError):
    """The tables lack the data of this figure. The message names what is missing."""


@dataclass(frozen=True, order=True)
class Rule:
    """A scaling rule with its p. ``place`` sorts rules as the vocabulary does."""

    place: int
    scaling: str
    p: float

    @classmethod
    def of(cls, scaling: str, exponent: float | None) -> "Rule":
        """The rule of a cell; ``exponent`` is used only if the rule has no p of its own."""
        p = exponent if RULES[scaling].p is None else RULES[scaling].p
        assert p is not None
        return cls(list(RULES).index(scaling), str(scaling), float(p))

    @property
    def has_own_p(self) -> bool:
        return RULES[self.scaling].p is not None


@dataclass(frozen=True)
class Family:
    """The cells of one setting, with their rule in the column ``rule``.

    ``label``: how the setting differs from the others of the study; ``""`` if it is the only one.
    ``keys``: the columns of ``cells`` that define the setting, with their values.
    """

    label: str
    keys: dict[str, Any]
    cells: pd.DataFrame

    @property
    def rules(self) -> list[Rule]:
        return sorted(set(self.cells["rule"]))

    @property
    def ranks(self) -> list[float]:
        return sorted(set(self.cells["rank"]))

    @property
    def finite_ranks(self) -> list[float]:
        return [rank for rank in self.ranks if np.isfinite(rank)]


PREFIX = {
    "lr": "learning rate ",
    "alpha": "α = ",
    **dict.fromkeys(("study", "model", "optimizer"), ""),
}
"""The words before a value in a label; by default the column's name."""


def families(cells: pd.DataFrame) -> list[Family]:
    """The families of ``cells``. Cells that the analysis fits together share one, rules aside."""
    labels = curve_labels(cells)
    rules = [Rule.of(s, p) for s, p in zip(cells["scaling"], labels["exponent_p"], strict=True)]
    columns = [str(name) for name in cells if name in labels and name != "scaling"]
    cells = cells.assign(
        rule=pd.Series(rules, cells.index, dtype=object),
        **{c: labels[c].astype(object) for c in columns if not is_numeric_dtype(labels[c])},
    )
    varying = [c for c in columns if cells[c].nunique(dropna=False) > 1]
    groups = (
        [group for _, group in cells.groupby(varying, dropna=False, observed=True)]
        if varying
        else [cells]
    )
    named = {"optimizer", *distinguishing(cells, varying)}
    found = []
    for group in groups:
        keys = {c: group[c].iloc[0] for c in columns}
        found.append(
            Family(", ".join(_named(c, keys[c]) for c in varying if c in named), keys, group)
        )
    return found


def most_varied(
    found: Sequence[T], most: int, family: Callable[[T], Any] = lambda one: one
) -> tuple[list[T], str]:
    """At most ``most`` of ``found``, in their order, and a sentence on what is left out.

    Optimizers take turns, each with its largest family first, so that a sweep over learning rates
    crowds out none of them. ``family``: the family of an element.
    """
    largest = sorted(range(len(found)), key=lambda i: -len(family(found[i]).cells))
    optimizer = [family(found[i]).keys.get("optimizer") for i in largest]
    turn = [optimizer[:i].count(optimizer[i]) for i in range(len(largest))]
    chosen = {largest[i] for i in np.argsort(turn, kind="stable")[:most]}
    left_out = f"{most} of {len(found)} settings are drawn." if most < len(found) else ""
    return [one for i, one in enumerate(found) if i in chosen], left_out


def rules_left_out(found: Sequence[Family], most: int) -> str:
    """A sentence on the rules that a figure of at most ``most`` leaves out; empty if none."""
    left_out = sorted({rule for family in found for rule in family.rules[most:]})
    if len(left_out) > MOST_NAMED:
        return f"{most} of {max(len(family.rules) for family in found)} rules are drawn."
    names = ", ".join(rule_label(rule.scaling, rule.p) for rule in left_out)
    return f"Not drawn: {names}." if names else ""


def _named(column: str, value: Any) -> str:
    """A value in a label: ``AdamW``, ``learning rate 0.0001``, ``no clip``, ``targets q_proj``."""
    if pd.isna(value):
        return printable(f"no {column.replace('_', ' ')}")
    text = (
        f"{value:g}"
        if isinstance(value, numbers.Number)
        else label(re.sub(r"[][']", "", model_label(value)))
    )
    return printable(PREFIX.get(column, column.replace("_", " ") + " ") + text)


def per_step(cells: pd.DataFrame, metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    """The finite values of a column of ``metrics``: (cell_id, step, value).

    The last row of a diverged cell is the step at which it diverged; so for a stuck cell.
    """
    if column not in metrics:
        return NOTHING
    rows = metrics[np.isfinite(metrics[column].to_numpy(float, na_value=np.nan))]
    series = pd.DataFrame(
        {
            "cell_id": rows["cell_id"].astype(str),
            "step": rows["step"],
            "value": rows[column].astype(float),
        }
    )
    return series[series["step"] <= _ends(cells, series)]


def model_wide(
    cells: pd.DataFrame, probes: pd.DataFrame, site: str, stat: str, batch: str = TRAIN
) -> pd.DataFrame:
    """The positive values of a statistic of the whole model: (cell_id, step, layer, value)."""
    return _probed(cells, probes, site, stat, batch, model=True)


def per_layer(
    cells: pd.DataFrame, probes: pd.DataFrame, site: str, stat: str, batch: str = TRAIN
) -> pd.DataFrame:
    """The positive values of a statistic of single layers: (cell_id, step, layer, value)."""
    return _probed(cells, probes, site, stat, batch, model=False)


NOTHING = pd.DataFrame(
    {"cell_id": pd.Series([], dtype=object), "step": [], "layer": [], "value": []}
)


def _probed(
    cells: pd.DataFrame, probes: pd.DataFrame, site: str, stat: str, batch: str, model: bool
) -> pd.DataFrame:
    if stat not in probes:
        return NOTHING
    rows = probes[
        (probes["site"] == site)
        & (probes["batch"] == batch)
        & ((probes["layer"] == MODEL_WIDE) == model)
    ]
    rows = rows[np.isfinite(rows[stat]) & (rows[stat] > 0)]
    names = {name: rows[name].astype(str) for name in ("cell_id", "layer")}
    series = pd.DataFrame({**names, "step": rows["step"], "value": rows[stat].astype(float)})
    return series[series["step"] < _ends(cells, series)]  # as the fits do


def _ends(cells: pd.DataFrame, series: pd.DataFrame) -> np.ndarray:
    """Per row the step at which its cell diverged or got stuck; infinity if it did neither."""
    ends = dict(zip(cells["cell_id"].astype(str), end_steps(cells), strict=True))
    return series["cell_id"].map(ends).fillna(np.inf).to_numpy(float)


def holding(cells: pd.DataFrame, series: pd.DataFrame, what: str) -> pd.DataFrame:
    """The cells with values in ``series``. Raises :class:`Absent` if there are none."""
    found = cells[cells["cell_id"].isin(set(series["cell_id"]))] if len(cells) else cells
    if found.empty:
        raise Absent(f"no {what} in the tables")
    return found
