"""Two or more studies side by side: the settings that differ; exponents, p* and losses with their
differences. docs/intervals.md says which curves, ranks and steps match, and defines the intervals.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from study.analysis.exponents import fit_exponents
from study.analysis.fits import mean_interval
from study.analysis.grouping import (
    HASH_OF,
    NOT_A_CURVE,
    RULE,
    curve_labels,
    curve_numbers,
    end_steps,
    groups,
)
from study.analysis.predictions import with_predictions
from study.analysis.stable import first_to_read, stable_exponents
from study.analysis.summary import BATCHES_OF
from study.analysis.verdicts import rows_of
from study.analysis.wording import INTERVAL, interval_text, rounded, setting_text
from study.errors import StudyError
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import (
    ALL_KINDS,
    HELDOUT,
    METRICS,
    MODEL_WIDE,
    QUANTITIES,
    TRAIN,
    Quantity,
)
from study.vocabulary.scaling import POWER, rule_label
from study.vocabulary.thresholds import CONFIDENCE

EXPONENT, P_STAR, LOSS = "exponent", "p*", "loss"
"""The values of ``what``."""
CLOSE = {EXPONENT: 0.01, P_STAR: 0.01, LOSS: 0.0}
"""Numbers that differ by at most this agree, even if the interval excludes 0."""
FIRST = (*RULE, "optimizer")
"""Settings that are matched before others."""
AXES = ("rank", "seed", "data_seed")
ROW = ["what", "quantity", "site", "stat", "batch", "rank"]
LAST = -1
"""Means the last step of each study, if these differ."""
MOST_VALUES = 8
"""A longer list of values is cut in the middle."""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` finds.

    ``settings``: the settings that differ, with a column of texts for each study. ``rows``: a row
    per other study, matching curve, quantity (at each rank, for losses) and pair of steps:

    - ``study``: the other study. ``curve``: rule, optimizer and what else separates the curves;
    - ``what``: ``exponent``, ``p*`` or ``loss`` (nats per token). ``rank``: NaN except for losses;
    - ``value``, ``low``, ``high``, ``seeds``, ``ranks``, ``step``: of the first study, with its
      95 % interval. The same names after ``other``: of the other study;
    - ``difference``: ``other - value``, with its interval ``ci_low``, ``ci_high``; ``paired``:
      whether that is over the differences of single seeds.
    """

    settings: pd.DataFrame
    rows: pd.DataFrame


def compare(studies: Mapping[str, StudyTables]) -> Comparison:
    """Compare the first of ``studies``, measured tables by name, with each of the others."""
    (first, one), *others = studies.items()
    rows = []
    for name, other in others:
        if not (pair := list(_pair(one, other))):
            raise StudyError(
                f"{first} and {name} have no exponent and no loss in common: compare studies with "
                "the same ranks and steps"
            )
        rows += [{"study": name, **row} for row in pair]
    return Comparison(differing_settings(studies), pd.DataFrame(rows))


def differing_settings(studies: Mapping[str, StudyTables]) -> pd.DataFrame:
    """The columns of ``cells`` whose values differ between studies: ``setting``, and the values in
    each study as text. Columns that records of an older version lack are left out. So is a hash if
    the name of its source differs too."""
    cells = {name: tables.cells for name, tables in studies.items()}
    columns = [str(column) for column in next(iter(cells.values()))]
    kept = [c for c in columns if c in AXES or c not in NOT_A_CURVE | {"study"}]
    kept = [column for column in kept if all(column in one for one in cells.values())]
    texts = {column: [_values_text(one[column]) for one in cells.values()] for column in kept}
    texts = {c: t for c, t in texts.items() if len(set(t)) > 1}
    rows = [[c, *t] for c, t in texts.items() if not set(HASH_OF.get(c, ())) & texts.keys()]
    return pd.DataFrame(rows, columns=["setting", *cells])


def _values_text(values: "pd.Series[Any]") -> str:
    """``4, 16, 64``; ``none`` for a setting without a value."""
    found = sorted(values.dropna().unique(), key=lambda one: (isinstance(one, str), one))
    texts = list(map(setting_text, found))
    if len(texts) > MOST_VALUES:
        texts = [*texts[:3], f"... ({len(texts)} values) ...", texts[-1]]
    return ", ".join(texts) or "none"


def _matched(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """The columns of two tables of labels in which a curve of one must equal that of the other.
    One by one, a column counts if some curves then still match."""
    found: list[str] = []
    for name in dict.fromkeys([*FIRST, "model", "data", "init", "targets", *one.columns]):
        if name in one and name in other:
            left, right = (set(_texts(labels, [*found, name])) for labels in (one, other))
            found += [name] * bool(left & right)
    return found


def _texts(labels: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """By row, the values of ``columns`` as texts, so that missing values are equal."""
    numeric = pd.api.types.is_numeric_dtype
    parts = [labels[c].astype(float if numeric(labels[c]) else object).map(str) for c in columns]
    return zip(*parts, strict=True) if parts else iter([()] * len(labels))


def _pair(one: StudyTables, other: StudyTables) -> Iterator[dict[str, Any]]:
    """The rows of :class:`Comparison` on two studies."""
    pair = one, other
    cells = [study.cells[np.isfinite(study.cells["rank"])] for study in pair]
    shared = set.intersection(*(set(rows["rank"]) for rows in cells))
    if len(shared) > 1:
        cells = [rows[rows["rank"].isin(shared)] for rows in cells]
    steps, batches = ([set(study.probes[name]) for study in pair] for name in ("step", "batch"))
    held_out = all(study.metrics["eval_loss"].notna().any() for study in pair)
    labels, values = [], []
    for study, rows, own in zip(pair, cells, steps, strict=True):
        labels.append(curve_labels(rows).drop(columns="study", errors="ignore"))
        units = [rows["seed"], rows["data_seed"] if "data_seed" in rows else rows["seed"]]
        rows = rows.assign(unit=units[0].map(str) + "/" + units[1].map(str)).reset_index(drop=True)
        wanted = set.intersection(*steps) | {max(own, default=0)}
        slopes = _slopes(rows, study, wanted, set.intersection(*batches))
        losses = _losses(rows, study.metrics, "eval_loss" if held_out else "loss")
        if not held_out:  # a training loss has every step
            losses = losses[losses["step"].isin(wanted | {losses["step"].max()})]
        values.append(pd.concat([*slopes, losses]))
    keys = _matched(*labels)
    varying = [
        str(name)
        for name in labels[0].columns.intersection(labels[1].columns)
        if name not in (*FIRST, *HASH_OF)
        and any(
            rows[name].nunique(dropna=False) > 1 for one in labels for rows in groups(one, FIRST)
        )
    ]
    left, right = (
        _samples(v, list(map(str, one)), keys) for v, one in zip(values, labels, strict=True)
    )
    for key, samples in left.items():
        for a, b in product(samples, right.get(key, [])):
            if key[-1] != LAST or a["step"].iloc[0] != b["step"].iloc[0]:
                row = dict(zip(ROW, key[len(keys) :], strict=False))
                yield {"curve": _curve_text(a.iloc[0], b.iloc[0], varying), **row, **_row(a, b)}


def _slopes(
    cells: pd.DataFrame, study: StudyTables, steps: set[int], batches: set[str]
) -> Iterator[pd.DataFrame]:
    """Exponents and p* of each seed at ``steps``, each on the first of its ``batches``."""
    probes, sites = study.probes, [quantity.site for quantity in QUANTITIES]
    mine = probes[probes["site"].isin(sites) & probes["step"].isin(steps)]
    stats = sorted({quantity.stat for quantity in QUANTITIES} & set(mine.columns))
    if not len(mine) or cells["rank"].groupby(curve_numbers(cells)).nunique().max() < 2:
        return
    fits = fit_exponents(cells, mine, stats=stats)  # a curve is a seed's: the unit is a column
    fits = fits[fits["kind"].isin([ALL_KINDS, MODEL_WIDE])]
    stable = first_to_read(stable_exponents(with_predictions(fits, cells, study.metrics, probes)))
    for quantity in QUANTITIES:
        batch = [one for one in BATCHES_OF.get(quantity, (TRAIN,)) if one in batches]
        rows = fits[rows_of(quantity, fits, batch[0] if batch else TRAIN)]
        yield _numbers(EXPONENT, quantity, rows, "exponent")
        if len(stable):
            rows = stable[(stable["site"] == quantity.site) & (stable["stat"] == quantity.stat)]
            yield _numbers(P_STAR, quantity, rows, "p_star")


def _numbers(what: str, quantity: Quantity, rows: pd.DataFrame, column: str) -> pd.DataFrame:
    ends = zip(rows["rank_min"], rows["rank_max"], strict=True)
    rows = rows.assign(what=what, quantity=quantity.label, value=rows[column], rank=np.nan)
    return rows.assign(span=[f"{low:.0f}-{high:.0f}" for low, high in ends])


def _losses(cells: pd.DataFrame, metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    """The losses of each cell after the first update, before it diverged or got stuck."""
    facts = curve_labels(cells).assign(rank=cells["rank"], end=end_steps(cells))
    rows = metrics[["cell_id", "step", name]].dropna().astype({"cell_id": str})
    rows = rows.merge(facts.assign(cell_id=cells["cell_id"].astype(str)), on="cell_id")
    rows = rows[(rows["step"] > 0) & (rows["step"] < rows["end"])]
    about: dict[str, Any] = {"what": LOSS, "quantity": METRICS[name].label, "ranks": 1}
    about |= {"site": "", "stat": name, "batch": TRAIN if name == "loss" else HELDOUT}
    return rows.assign(**about, value=rows[name], span=rows["rank"].map("{:.0f}".format))


def _samples(
    values: pd.DataFrame, labels: Sequence[str], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[pd.DataFrame]]:
    """The rows of each curve, quantity and step, one per seed, by the matched columns ``keys``,
    :data:`ROW` and step. Seeds that lack a rank of the others are left out."""
    last = values.groupby("what")["step"].transform("max") == values["step"]
    values = pd.concat([values.assign(at=values["step"]), values[last].assign(at=LAST)])
    found: dict[tuple[Any, ...], list[pd.DataFrame]] = defaultdict(list)
    for rows in groups(values, [*labels, *ROW, "at"]):
        rows = rows[rows["ranks"] == rows["ranks"].max()]
        [matched] = _texts(rows[:1], keys)
        place = (rows[name].iloc[0] for name in [*ROW, "at"])
        found[(*matched, *(None if pd.isna(one) else one for one in place))].append(rows)
    return found


def _curve_text(one: Any, other: Any, varying: Sequence[str]) -> str:
    """``AdamW, rsLoRA``, and the ``varying`` settings of the curves: ``lr=0.001`` if they share it,
    ``lr=0.001|0.002`` if they do not. So for the optimizer and the rule."""

    def words(curve: Any) -> list[str]:
        is_grid = curve["scaling"] == POWER and pd.isna(curve["exponent_p"])
        rule = "several rules" if is_grid else rule_label(*curve[list(RULE)])
        return [label(curve["optimizer"]), rule, *(setting_text(curve[name]) for name in varying)]

    heads = ["", "", *(f"{name}=" for name in varying)]
    parts = zip(heads, words(one), words(other), strict=True)
    return ", ".join(head + "|".join(dict.fromkeys(texts)) for head, *texts in parts)


def _row(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """The numbers of a row."""
    row: dict[str, Any] = {}
    for head, rows in (("", one), ("other_", other)):
        names = (head[:-1] or "value", f"{head}low", f"{head}high")
        row |= dict(zip(names, mean_interval(rows["value"]), strict=True))
        row |= {f"{head}seeds": len(rows), f"{head}ranks": rows["span"].iloc[0]}
        row[f"{head}step"] = int(rows["step"].iloc[0])
    values = (rows.set_index("unit")["value"].astype(float) for rows in (one, other))
    columns = ("difference", "ci_low", "ci_high", "paired")
    return row | dict(zip(columns, difference_interval(*values), strict=True))


def difference_interval(
    one: "pd.Series[float]", other: "pd.Series[float]"
) -> tuple[float, float, float, bool]:
    """The mean of ``other`` minus that of ``one``, its 95 % interval, and whether it is paired.

    Both are indexed by seed. With the same seeds, it is Student's t over the differences of single
    seeds; otherwise Welch's (1947). The bounds are NaN without two values of each.
    """
    if set(one.index) == set(other.index):
        return *mean_interval(other - one), True
    difference = float(other.mean() - one.mean())
    if min(len(one), len(other)) < 2 or not one.var() + other.var() > 0:
        return difference, np.nan, np.nan, False
    ends = stats.ttest_ind(other, one, equal_var=False).confidence_interval(CONFIDENCE)
    return difference, float(ends.low), float(ends.high), False


# What to read.


def conclusions(rows: pd.DataFrame) -> list[str]:
    """A summary of the differences: a sentence each for exponents, p* and losses."""
    nouns = {EXPONENT: "exponents", P_STAR: "p*", LOSS: "losses"}
    found = []
    for what, mine in rows.groupby("what", sort=False):
        size, close = mine["difference"].abs(), CLOSE[str(what)]
        agree = (size <= close) | ((mine["ci_low"] <= 0) & (mine["ci_high"] >= 0))
        within = f"differ by at most {close:g}, or " if close else ""
        found.append(
            f"{agree.sum()} of {len(mine)} {nouns[str(what)]} agree: they {within}have a "
            f"difference whose {INTERVAL} holds 0. The median difference is "
            f"{rounded(size.median(), 3)}, the largest {rounded(size.max(), 3)}."
        )
    return found


def to_read(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows to read first: those at the first and last pair of steps of each quantity; losses
    at the last pair only.

    With texts: ``line`` (quantity and rank), ``steps`` (``10|400`` if the studies end at other
    steps), ``a`` and ``b`` (the numbers with their intervals), ``change`` (the difference).
    """
    ranks = ["" if pd.isna(rank) else f", rank {rank:.0f}" for rank in rows["rank"]]
    pairs = zip(rows["step"], rows["other_step"], strict=True)
    numbers = {"a": ["value", "low", "high"], "b": ["other", "other_low", "other_high"]}
    numbers["change"] = ["difference", "ci_low", "ci_high"]
    texts = {
        text: [interval_text(a, b, c, 3) for a, b, c in rows[names].to_numpy(float)]
        for text, names in numbers.items()
    }
    steps = ["|".join(dict.fromkeys((f"{a:g}", f"{b:g}"))) for a, b in pairs]
    rows = rows.assign(line=rows["quantity"] + pd.Series(ranks, rows.index), steps=steps, **texts)
    by = rows.groupby(["study", "curve", "what", "quantity", "rank"], dropna=False)
    order = rows["step"] + rows["other_step"]
    first, last = (order.groupby(by.ngroup()).transform(f) == order for f in ("min", "max"))
    return rows[last | (first & (rows["what"] != LOSS))]
