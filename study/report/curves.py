"""The curves that the answer speaks about: a rule in one setting, with what was measured of it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import rank_effects
from study.analysis.grouping import curve_labels, distinguishing, firsts, numbered
from study.analysis.losses import NOT_A_SETTING
from study.analysis.rank_stabilized import condition_rows
from study.analysis.verdicts import rows_of
from study.analysis.wording import setting_text
from study.report.formatting import row_list
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import DESCENT
from study.vocabulary.scaling import formula, rule_label


@dataclass(frozen=True)
class Curve:
    """One rule in one setting, at one learning rate.

    - ``beside``: what separates its setting from the others of the study, such as the optimizer;
      empty if there is one. ``rule``: ``rsLoRA``, or ``rsLoRA (AdamW)``. ``name``: with the
      formula, ``rsLoRA (AdamW, γ = α/√r)``;
    - ``setting``: equal for curves that differ in the rule only;
    - ``condition``: its rows of :func:`~study.analysis.rank_stabilized.condition_rows`;
    - ``descent``: the row of ``exponents`` with the descent of the first update, or None;
    - ``losses``: by rank, the final held-out loss in nats per token, the mean over seeds. A rank at
      which a run diverged or got stuck has none. ``base``: that before training, or NaN;
    - ``gain``: its row of :func:`~study.analysis.losses`; None without two such ranks.
    """

    beside: str
    rule: str
    name: str
    setting: str
    lr: float
    steps: float
    condition: list[Any]
    descent: Any | None
    losses: dict[float, float]
    base: float
    gain: Any | None

    @property
    def last(self) -> list[Any]:
        """The rows of the condition at the last step measured."""
        return [row for row in self.condition if row.is_last]


def curves(tables: StudyTables) -> list[Curve]:
    """Every curve with a fitted quantity or a final loss, in the order of the cells.

    Of several learning rates, a setting is read at the one that is best at its lowest rank, as
    tuning a small adapter would choose it; without final losses, at the lowest.
    """
    labels = curve_labels(tables.cells).assign(cell_id=tables.cells["cell_id"].astype(str))
    columns = [str(name) for name in labels if name != "cell_id"]
    losses = _fixed(tables.losses)
    labels = _at_one_rate(labels, losses, columns)
    exponents = _with_key(tables.exponents, columns)
    exponents = exponents[exponents["key"].isin(_with_key(labels, columns)["key"])]
    condition = condition_rows(exponents.drop(columns="key")) if len(exponents) else exponents
    first = exponents[rows_of(DESCENT, exponents)] if len(exponents) else exponents
    parts = {
        "condition": _with_key(condition, columns),
        "descent": first[first["step"] == 0] if len(first) else first,
        "losses": _with_key(losses, columns),
    }
    effects = _fixed(rank_effects(tables.losses))
    found = []
    for _, cells in _with_key(labels, columns).groupby("key", sort=False):
        own = {name: part[part["key"] == cells["key"].iloc[0]] for name, part in parts.items()}
        if len(own["condition"]) or len(own["losses"]):
            found.append(_curve(cells, columns, labels, own, effects, tables.metrics))
    return found


def _curve(
    cells: pd.DataFrame,
    columns: Sequence[str],
    labels: pd.DataFrame,
    own: dict[str, pd.DataFrame],
    effects: pd.DataFrame,
    metrics: pd.DataFrame,
) -> Curve:
    row = cells.iloc[0]
    beside = [label(str(row["optimizer"]))] if labels["optimizer"].nunique() > 1 else []
    beside += [f"{name}={setting_text(row[name])}" for name in distinguishing(labels, columns)]
    rule = rule_label(str(row["scaling"]), row["exponent_p"])
    return Curve(
        beside=", ".join(beside),
        rule=f"{rule} ({', '.join(beside)})" if beside else rule,
        name=f"{rule} ({', '.join([*beside, formula(row['exponent_p'])])})",
        setting=str(_key(cells.head(1), _beside_rule(columns)).iloc[0]),
        lr=float(row["lr"]),
        steps=float(row.get("steps", math.nan)),
        condition=row_list(own["condition"]),
        descent=next(iter(row_list(own["descent"])), None),
        losses=_by_rank(own["losses"]),
        base=_first_loss(metrics, set(cells["cell_id"])),
        gain=_gain(own["losses"], effects),
    )


def _beside_rule(columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name not in ("scaling", "exponent_p")]


def _fixed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``losses`` or of ``rank_effects`` that compare ranks at one learning rate."""
    return table[table["how"] == "fixed"] if len(table) else table


def _at_one_rate(
    labels: pd.DataFrame, losses: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """The rows of ``labels`` at the learning rate of each setting."""
    setting = [name for name in columns if name not in NOT_A_SETTING]
    own, of_losses = _key(labels, setting), _key(losses, setting)
    rate = labels["lr"].groupby(own).transform("min")
    if len(losses):
        rate = own.map(losses["lr"].groupby(of_losses).first()).fillna(rate)
    return labels[labels["lr"] == rate]


def _with_key(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    return table.assign(key=_key(table, columns))


def _key(table: pd.DataFrame, columns: Sequence[str]) -> "pd.Series[str]":
    """A text per row, equal for rows that agree in ``columns``."""
    if table.empty:
        return pd.Series([], dtype=object)
    number = numbered(table, columns)
    first = table.iloc[firsts(number)]
    texts = [map(str, _comparable(first[name])) for name in columns]
    keys = np.array(["\n".join(row) for row in zip(*texts, strict=True)], object)
    return pd.Series(keys[number], table.index)


def _comparable(values: "pd.Series[Any]") -> Iterable[Any]:
    """Numbers as floats, because one table may hold them as integers."""
    return values.astype(float) if pd.api.types.is_numeric_dtype(values) else values.astype(object)


def _by_rank(losses: pd.DataFrame) -> dict[float, float]:
    if losses.empty:
        return {}
    broken = losses["loss"].isna().groupby(losses["rank"]).any()
    means = losses.groupby("rank")["loss"].mean()[~broken]
    return dict(zip(means.index.astype(float), means.astype(float), strict=True))


def _first_loss(metrics: pd.DataFrame, ids: set[str]) -> float:
    """The held-out loss of some cells at step 0, where an adapter adds nothing."""
    if "eval_loss" not in metrics:
        return math.nan
    here = (metrics["step"] == 0) & metrics["cell_id"].astype(str).isin(ids)
    return float(metrics.loc[here, "eval_loss"].mean())


def _gain(losses: pd.DataFrame, effects: pd.DataFrame) -> Any | None:
    if losses.empty or effects.empty:
        return None
    row = losses.iloc[0]
    here = np.ones(len(effects), bool)
    for name in ("setting", "scaling", "exponent_p", "alpha", "lr"):
        here &= (effects[name] == row[name]).to_numpy()
    return next(iter(row_list(effects[here])), None)
