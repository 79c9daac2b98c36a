"""Which cells form a curve: those of one configuration at several ranks and seeds."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.fits import Floats, Ints
from study.errors import StudyError
from study.theory import slope
from study.vocabulary.scaling import POWER, RULES, gamma
from study.vocabulary.statuses import END_COLUMNS, end_step

NOT_A_CURVE = frozenset(
    {
        # The axes of a curve, and columns that follow from them.
        *("cell_id", "rank", "gamma", "seed", "data_seed", "adapter_sha256"),
        "adapted_share",  # follows from the model and the targets
        # How a cell ended, and on which device.
        *("status", "error", "diverged_step", "stuck_step", "steps_done", "seconds"),
        *("peak_memory_gb", "device"),
        *("supervised", "train_rows"),  # follow from data and tokenizer
        # The schedule of measurements, which does not change their values.
        *("probes_every", "probes_steps", "probes_sites", "probes_stats", "probes_batch"),
        *("probes_truncations", "eval_every", "answer_tokens", "example_losses"),
    }
)
"""The columns of ``cells`` that do not separate curves. All others do, also unknown ones."""

RULE = ("scaling", "exponent_p", "crossover")
"""The columns that name a scaling rule. ``exponent_p`` is NaN if it is no power, and ``crossover``
if it uses none."""
CURVE_FIRST = (
    *("study", "model", "quant_bits", "data", "optimizer", *RULE, "alpha", "lr", "init", "targets"),
)

CURVE_ID = "curve_id"
"""A text, equal for the cells of one curve and for its rows in all tables."""

FOLLOWS = {
    "model_sha256": ("model", "width"),
    "tokenizer_sha256": ("model",),
    "data_sha256": ("data", "max_samples"),
    "warmup": ("steps",),
    "alpha": RULE,
}
"""For a hash, the columns that name its source; for a warm-up, which may be a share of the steps,
their number; for alpha, the rule, as some studies choose one alpha for each."""


def curve_columns(table: pd.DataFrame) -> list[str]:
    """The columns that identify the curve: those before its id or, where rows of several curves
    are joined, before ``site`` or ``setting``."""
    return list(takewhile(lambda name: name not in (CURVE_ID, "site", "setting"), table.columns))


def distinguishing(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """The ``columns`` that a label must name to separate the curves of ``rows``: not optimizer,
    rule or what follows from them."""
    return [
        name
        for name in columns
        if name not in ("optimizer", *RULE)
        and _varies(rows, name, "optimizer")
        and _varies(rows, name, *FOLLOWS.get(name, ()))
    ]


def rule_columns(rows: pd.DataFrame) -> tuple[str, ...]:
    """The columns that name a rule, with ``alpha`` if each rule has one alpha."""
    has_one = "alpha" in rows and not _varies(rows, "alpha", *RULE)
    return (*RULE, "alpha") if has_one else RULE


def _varies(rows: pd.DataFrame, column: str, *within: str) -> bool:
    """Whether ``column`` has several values in rows with the same values of ``within``."""
    if rows[column].nunique(dropna=False) < 2:  # most columns; to group the rows takes longer
        return False
    same = [rows[name].astype(object) for name in within if name in rows]
    values = rows.groupby(same or np.zeros(len(rows)), dropna=False, observed=True)[column]
    return bool(values.nunique(dropna=False).max() > 1)


def numbered(table: pd.DataFrame, columns: Iterable[str], within: Ints | None = None) -> Ints:
    """Numbers the distinct combinations of ``columns`` (and ``within``), in order of appearance."""
    number = np.zeros(len(table), np.int64) if within is None else within.astype(np.int64)
    for name in columns:
        codes, values = pd.factorize(table[name], use_na_sentinel=False)
        number = pd.factorize(number * max(len(values), 1) + codes)[0]
    return number


def groups(table: pd.DataFrame, columns: Iterable[str]) -> Iterator[pd.DataFrame]:
    """The rows of each distinct combination of ``columns``, in order of appearance."""
    if len(table):
        yield from (rows for _, rows in table.groupby(numbered(table, columns)))


def codes(column: "pd.Series[str]") -> tuple[Ints, list[str]]:
    """A column of strings as integers, and the string of each integer."""
    values = column.astype("category").cat
    return values.codes.to_numpy(), [str(name) for name in values.categories]


def end_steps(cells: pd.DataFrame) -> Floats:
    """Per cell the first step whose rows are not used: those of a diverged or a stuck cell."""
    columns = [name for name in cells if name == "status" or name in END_COLUMNS]
    return np.array([end_step(cell) for cell in cells[columns].to_dict("records")])


def curve_labels(cells: pd.DataFrame) -> pd.DataFrame:
    """The columns that separate curves, and :data:`CURVE_ID`, a hash of their values."""
    p = cells["scaling"].astype(object).map({name: rule.p for name, rule in RULES.items()})
    p = p.astype(float)
    if "exponent" in cells:
        p = cells["exponent"].astype(float).fillna(p)
    found = {str(name): column for name, column in cells.items()} | {"exponent_p": p}
    found["crossover"] = cells.get("crossover", p * math.nan).astype(float)
    columns, texts = dict[str, Any](), list[list[Any]]()
    for name in dict.fromkeys([*CURVE_FIRST, *found]):
        if name not in found or name in (*NOT_A_CURVE, "exponent"):
            continue
        column = found[name]
        if pd.api.types.is_numeric_dtype(column):
            columns[name] = column.array
            texts.append((column if column.dtype == bool else column.astype(float)).tolist())
        else:  # lists and dicts too, as strings
            words = column.astype(object).map(str, na_action="ignore").tolist()
            columns[name] = pd.Categorical(words)
            texts.append(words)
    rows = ["\n".join(map(str, row)) for row in zip(*texts, strict=True)]
    ids = {row: hashlib.sha256(row.encode()).hexdigest()[:12] for row in dict.fromkeys(rows)}
    columns[CURVE_ID] = pd.Categorical([ids[row] for row in rows], list(ids.values()))
    return pd.DataFrame(columns, cells.index)


def gammas(rule: Any, ranks: Iterable[float]) -> Floats:
    """Gamma over alpha at ``ranks``, for a row (a series or a dict) with :data:`RULE`."""
    power = float(rule["exponent_p"]) if rule["scaling"] == POWER else None
    over = [gamma(str(rule["scaling"]), 1.0, rank, power, rule["crossover"]) for rank in ranks]
    return np.array(over)


def local_p(rule: Any, ranks: Floats) -> float:
    """The p of the power that is nearest to the rule over ``ranks``: its slope is that of the
    rule."""
    p = float(rule["exponent_p"])
    return -slope(gammas(rule, ranks), ranks) if math.isnan(p) else p


def seed_numbers(cells: pd.DataFrame) -> Ints:
    """A number for each pair of seed and data seed: the sample unit of every interval."""
    units = [name for name in ("seed", "data_seed") if name in cells]
    return cells.groupby(units, dropna=False).ngroup().to_numpy(np.intp)


def design(cells: pd.DataFrame) -> pd.DataFrame:
    """By ``cell_id``: ``curve``, ``seed``, ``rank`` and ``end``, the first step whose rows are not
    used (0 at infinite rank)."""
    ids = pd.Index(cells["cell_id"].astype(str))
    labels = curve_labels(cells).reset_index(drop=True)
    curve, rank = labels[CURVE_ID].cat.codes.to_numpy(), cells["rank"].to_numpy(float)
    end = np.where(np.isinf(rank), 0.0, end_steps(cells))
    table = pd.DataFrame({"curve": curve, "seed": seed_numbers(cells), "rank": rank}, ids)
    twins = table[table.duplicated(keep=False)]
    if len(twins):
        same = list(twins.index[(twins == twins.iloc[0]).all(axis=1)])
        first = cells[cells["cell_id"].astype(str) == same[0]].iloc[0]
        raise StudyError(
            f"cells {', '.join(same)} have the same rank {first['rank']:.0f}, seed {first['seed']} "
            "and configuration: keep one"
        )
    finite = pd.Series(rank).where(np.isfinite(rank))
    if finite.nunique() > 1 and finite.groupby(curve).nunique().max() < 2:
        columns = curve_columns(labels)
        rule = numbered(labels, [name for name in columns if name != "lr"])
        rates = labels["lr"].groupby([rule, finite]).nunique()
        if finite.groupby(rule).nunique().max() < 2 or rates.max() < 2:
            differing = [name for name in columns if labels[name].nunique(dropna=False) > 1]
            raise StudyError(
                f"no two ranks share a curve; the cells also differ in {', '.join(differing)}: "
                "sweep the rank with everything else fixed"
            )
    return table.assign(end=end)
