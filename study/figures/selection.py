"""What a figure reads: a study's tables, cut into settings, rules, ranks and seeds.

A *family* is everything that a figure must not mix: one model, data set, optimizer, learning rate and so on. Inside a
family only the scaling rule, the rank and the seed differ; a figure gives each family a row of panels of its own.
"""

import numbers
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from study.analysis.grouping import NOT_A_CURVE
from study.errors import StudyError
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import MODEL_WIDE
from study.vocabulary.scaling import RULES
from study.vocabulary.sources import model_label


class Tables(Protocol):
    """The four tables of a study (DESIGN section 5): ``study.load(folder)`` returns them."""

    @property
    def cells(self) -> pd.DataFrame: ...
    @property
    def metrics(self) -> pd.DataFrame: ...
    @property
    def probes(self) -> pd.DataFrame: ...
    @property
    def exponents(self) -> pd.DataFrame: ...


class Absent(StudyError):
    """The tables hold nothing that this figure shows; the message says what is missing."""


@dataclass(frozen=True, order=True)
class Rule:
    """A scaling rule as a figure tells it apart: its name, and its p where the name does not say it."""

    place: int
    scaling: str
    p: float

    @classmethod
    def of(cls, scaling: str, exponent: float | None) -> "Rule":
        """The rule of a cell; ``exponent`` is read only where the rule has no p of its own."""
        p = exponent if RULES[scaling].p is None else RULES[scaling].p
        assert p is not None
        return cls(list(RULES).index(scaling), str(scaling), float(p))


@dataclass(frozen=True)
class Family:
    """The cells of one setting. ``label`` names what sets it apart from the study's others; ``""`` if it is alone."""

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


def families(cells: pd.DataFrame) -> list[Family]:
    """The families of ``cells``: cells belong together by what the analysis puts into one fit, the rule aside."""
    exponent = cells["exponent"] if "exponent" in cells else [None] * len(cells)
    rule = pd.Series(
        [Rule.of(s, p) for s, p in zip(cells["scaling"], exponent, strict=True)],
        cells.index,
        dtype=object,
    )
    columns = [str(c) for c in cells if c not in NOT_A_CURVE and c not in ("scaling", "exponent")]
    # As strings where they are no numbers, like the analysis: a list of targets may be an array, which has no groups.
    words = {
        c: cells[c].map(str, na_action="ignore") for c in columns if not is_numeric_dtype(cells[c])
    }
    cells = cells.assign(rule=rule, **words)
    varying = [c for c in columns if cells[c].nunique(dropna=False) > 1]
    groups = (
        [group for _, group in cells.groupby(varying, dropna=False, observed=True)]
        if varying
        else [cells]
    )
    named = [c for c in varying if not _goes_without_saying(cells, c)]
    found = []
    for group in groups:
        keys = {c: group[c].iloc[0] for c in columns}
        found.append(Family(", ".join(_named(c, keys[c]) for c in named), keys, group))
    return found


KNOBS = ("momentum", "eps")
"""Columns of ``cells`` that only some optimizers have."""


def _goes_without_saying(cells: pd.DataFrame, column: str) -> bool:
    """Whether ``column`` is a knob at one setting per optimizer: "SGD" says "no eps"."""
    if column not in KNOBS or "optimizer" not in cells:
        return False
    return bool(cells.groupby("optimizer", observed=True)[column].nunique(dropna=False).max() == 1)


def most_varied(found: list[Family], most: int) -> tuple[list[Family], str]:
    """At most ``most`` families, in their order, and a sentence on what was left out.

    Optimizers take turns, each with its largest family first: a sweep over learning rates must not crowd one out.
    """
    largest = sorted(found, key=lambda family: -len(family.cells))
    optimizer = [family.keys.get("optimizer") for family in largest]
    turn = [optimizer[:i].count(optimizer[i]) for i in range(len(largest))]
    chosen = [largest[i] for i in np.argsort(turn, kind="stable")[:most]]
    left_out = f"{most} of {len(found)} settings shown." if most < len(found) else ""
    return [family for family in found if any(family is one for one in chosen)], left_out


def rules_left_out(found: list[Family], most: int) -> str:
    """A sentence for a family with more than ``most`` rules."""
    rules = max(len(family.rules) for family in found)
    return f"{most} of {rules} rules shown." if rules > most else ""


def _named(column: str, value: Any) -> str:
    """``AdamW``, ``learning rate 0.0001``, ``no clip``, ``targets q_proj,v_proj``: a value as a heading names it."""
    if pd.isna(value):
        return f"no {column.replace('_', ' ')}"
    text = (
        f"{value:g}"
        if isinstance(value, numbers.Number)
        else label(re.sub(r"[][']", "", model_label(value)))
    )
    return PREFIX.get(column, column.replace("_", " ") + " ") + text


def per_step(cells: pd.DataFrame, metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column of ``metrics`` as (cell_id, step, value), where finite; the step a cell diverged at is its last."""
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
    cells: pd.DataFrame, probes: pd.DataFrame, site: str, stat: str, batch: str = "train"
) -> pd.DataFrame:
    """A model-wide statistic as (cell_id, step, layer, value), where it has a logarithm."""
    return _probed(cells, probes, site, stat, batch, model=True)


def per_layer(
    cells: pd.DataFrame, probes: pd.DataFrame, site: str, stat: str, batch: str = "train"
) -> pd.DataFrame:
    """The layers' statistic as (cell_id, step, layer, value), where it has a logarithm."""
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
    """Per row the step at which its cell diverged: from there on a pack measures the weights that it left behind."""
    if "diverged_step" not in cells:
        return np.full(len(series), np.inf)
    diverged = dict(
        zip(cells["cell_id"], cells["diverged_step"].astype(float).fillna(np.inf), strict=True)
    )
    return series["cell_id"].map(diverged).to_numpy(float)


def holding(cells: pd.DataFrame, series: pd.DataFrame, what: str) -> pd.DataFrame:
    """The cells that ``series`` has values for. Raises :class:`Absent` where it has none."""
    found = cells[cells["cell_id"].isin(set(series["cell_id"]))] if len(cells) else cells
    if found.empty:
        raise Absent(f"no {what} in the tables")
    return found
