"""The data of a figure: the tables of a study, split into settings, rules, ranks and seeds.

A *family* is one setting: one model, data set, optimizer, learning rate and so on. Within a family
only the scaling rule, the rank and the seed differ. Every family has its own panels, so that a
figure never mixes settings.
"""

import math
import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from study.analysis.grouping import RULE, curve_labels, distinguishing, end_steps, rule_columns
from study.analysis.wording import setting_text
from study.errors import StudyError, printable
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import MODEL_WIDE, TRAIN
from study.vocabulary.scaling import RULES, letter
from study.vocabulary.sources import model_label

Tables = StudyTables
MOST_FAMILIES = 3
"""Settings that a figure draws."""


class Absent(StudyError):
    """The tables lack the data of this figure. The message names what is missing."""


@dataclass(frozen=True, order=True)
class DrawnRule:
    """A scaling rule with its ``number``: its p or, if it is no power, its crossover."""

    place: int
    scaling: str
    number: float

    @classmethod
    def of(cls, scaling: str, p: float | None = None, crossover: float = math.nan) -> "DrawnRule":
        """The rule of a cell. A number that the rule does not use, or has itself, is not read."""
        own = RULES[scaling].p or 0.0  # full fine-tuning has no number
        number = {"c": crossover, "p": p}.get(letter(scaling), own)
        assert number is not None
        return cls(list(RULES).index(scaling), str(scaling), float(number))

    @property
    def letter(self) -> str:
        return letter(self.scaling) or "p"

    @property
    def p(self) -> float:
        return math.nan if self.letter == "c" else self.number

    @property
    def has_own_p(self) -> bool:
        return RULES[self.scaling].p is not None


@dataclass(frozen=True, eq=False)
class Family:
    """The cells of one setting. ``words``: how it differs from others, a column each."""

    words: tuple[str, ...]
    cells: pd.DataFrame

    @property
    def label(self) -> str:
        return ", ".join(self.words)

    @property
    def rules(self) -> list[DrawnRule]:
        return sorted(set(self.cells["rule"]))

    @property
    def ranks(self) -> list[float]:
        return sorted(set(self.cells["rank"]))

    @property
    def finite_ranks(self) -> list[float]:
        return [rank for rank in self.ranks if np.isfinite(rank)]


F = TypeVar("F", bound=Family)
T = TypeVar("T")


def rules_of(rows: pd.DataFrame) -> "pd.Series[Any]":
    """The :class:`DrawnRule` of each row of a derived table."""
    return pd.Series(
        list(starmap(DrawnRule.of, rows[list(RULE)].to_numpy())), rows.index, dtype=object
    )


PREFIX = {
    "lr": "learning rate ",
    "alpha": "α = ",
    **dict.fromkeys(("study", "model", "optimizer"), ""),
}
"""The words before a value in a label; by default the column's name."""


def families(cells: pd.DataFrame) -> list[Family]:
    """The families of ``cells``. Cells that the analysis fits together share one, rules aside."""
    labels = curve_labels(cells)
    rules = rules_of(labels)
    ours = rule_columns(labels)
    columns = [str(name) for name in cells if name in labels and name not in ours]
    words = labels.select_dtypes("category").astype(object)
    cells = cells.assign(rule=rules, **words)  # and the id of their curve
    varying = [c for c in columns if cells[c].nunique(dropna=False) > 1]
    groups = [cells]
    if varying:
        groups = [group for _, group in cells.groupby(varying, dropna=False, observed=True)]
    named = [c for c in varying if c in {"optimizer", *distinguishing(cells, varying)}]
    return [
        Family(tuple(_named(name, group[name].iloc[0]) for name in named), group)
        for group in groups
    ]


def _named(column: str, value: Any) -> str:
    """A value in a label: ``AdamW``, ``learning rate 0.0001``, ``no clip``, ``targets q_proj``."""
    words = column.replace("_", " ")
    if pd.isna(value):
        return printable(f"no {words}")
    if isinstance(value, numbers.Number):
        text = setting_text(value)
    else:
        text = label(re.sub(r"[][']", "", model_label(value)))
    return printable(PREFIX.get(column, f"{words} ") + text)


def most_varied(
    found: Sequence[F], most: int = MOST_FAMILIES, rules: int = 99
) -> tuple[list[F], str]:
    """At most ``most`` of ``found``, in their order, and a sentence on what is left out.

    Optimizers take turns, each with its largest family first, so that a sweep over learning rates
    displaces none of them. ``rules``: how many of a family the figure draws.
    """
    largest = sorted(range(len(found)), key=lambda i: -len(found[i].cells))
    optimizer = [found[i].cells["optimizer"].iloc[0] for i in largest]
    turn = [optimizer[:i].count(optimizer[i]) for i in range(len(largest))]
    chosen = {largest[i] for i in np.argsort(turn, kind="stable")[:most]}
    shown = [one for i, one in enumerate(found) if i in chosen]
    left_out = f"{most} of {len(found)} settings are drawn. " if most < len(found) else ""
    if (most_rules := max(len(one.rules) for one in shown)) > rules:
        left_out += f"{rules} of {most_rules} rules are drawn."
    return shown, left_out.strip()


def holding(
    cells: pd.DataFrame,
    content: Callable[[Family], T],
    absent: str,
    most: int = MOST_FAMILIES,
    rules: int = 99,
) -> tuple[dict[Family, T], str]:
    """By family of ``cells``, its ``content``, if that is not empty; and what is left out of it."""
    found = {family: content(family) for family in families(cells)} if len(cells) else {}
    found = {family: held for family, held in found.items() if len(held)}  # type: ignore[arg-type]
    if not found:
        raise Absent(absent)
    shown, left_out = most_varied(list(found), most, rules)
    return {family: found[family] for family in shown}, left_out


def per_step(tables: Tables, column: str) -> pd.DataFrame:
    """The finite values of a column of ``metrics``: (cell_id, step, value), also at a broken
    end."""
    rows = tables.metrics.reindex(columns=["cell_id", "step", column])
    series = _series(rows, rows[column])
    return series[series["step"] <= _ends(tables.cells, series)]


def probed(
    tables: Tables, site: str, stat: str, batch: str = TRAIN, *, model: bool = False
) -> pd.DataFrame:
    """A statistic's positive values: (cell_id, step, layer, value), of layers or of the
    ``model``."""
    rows = tables.probes
    if stat not in rows:
        return pd.DataFrame(columns=["cell_id", "step", "value", "layer"])
    rows = rows[(rows["site"] == site) & (rows["batch"] == batch)]
    rows = rows[((rows["layer"] == MODEL_WIDE) == model) & (rows[stat] > 0)]
    series = _series(rows, rows[stat])
    series["layer"] = rows["layer"].astype(str)
    return series[series["step"] < _ends(tables.cells, series)]  # as the fits do


def _series(rows: pd.DataFrame, values: "pd.Series[Any]") -> pd.DataFrame:
    """The finite ones of the ``values`` of ``rows``: (cell_id, step, value)."""
    value = values.astype(float)
    series = rows[["cell_id", "step"]].astype({"cell_id": str}).assign(value=value)
    return series[np.isfinite(value)]


def _ends(cells: pd.DataFrame, series: pd.DataFrame) -> np.ndarray:
    """Per row the step at which its cell diverged or got stuck; infinity if it did neither."""
    ends = dict(zip(cells["cell_id"].astype(str), end_steps(cells), strict=True))
    return series["cell_id"].map(ends).fillna(np.inf).to_numpy(float)


def cells_of(cells: pd.DataFrame, series: pd.DataFrame, what: str) -> pd.DataFrame:
    """The cells with values in ``series``. Raises :class:`Absent` if there are none."""
    found = cells[cells["cell_id"].isin(set(series["cell_id"]))] if len(cells) else cells
    if found.empty:
        raise Absent(f"no {what} in the tables")
    return found
