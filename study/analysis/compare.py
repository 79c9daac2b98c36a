"""Two or more studies side by side: the settings that differ; exponents, p* and losses with their
differences.

**Curves that match.** Two curves are compared if they agree in the columns of
:func:`matched_columns`: the rule, the optimizer, and every other setting in which some curves of
both studies agree. The other settings are what the comparison is about. If a study has several
curves for one of the other, each is compared.

**Ranks and steps.** A slope depends on the ranks that it is over, so both studies are reduced to
the ranks that they share, if these are two or more. Steps that both studies have are compared; so
is the last step of each, if these differ.

**Intervals.** The sample unit is the seed (a pair of seed and data seed), as everywhere. A number
is computed for each seed, from all ranks of the row. If both studies have the same seeds, the
interval of the difference is Student's t over the differences of single seeds: they share draws and
batches. Otherwise it is Welch's. Without two seeds in each study there is none.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from study.analysis.exponents import fit_exponents
from study.analysis.fits import mean_interval, t_critical
from study.analysis.grouping import HASH_OF, curve_labels, curve_numbers, end_steps, groups
from study.analysis.predictions import with_predictions
from study.analysis.stable import first_to_read, stable_exponents
from study.analysis.summary import BATCHES_OF
from study.analysis.verdicts import rows_of
from study.analysis.wording import INTERVAL, rounded, setting_text
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

EXPONENT, P_STAR, LOSS = "exponent", "p*", "loss"
"""The values of ``what``."""
CLOSE = 0.01
"""Exponents that differ by at most this agree, however narrow the interval of the difference."""
FIRST_MATCHED = ("scaling", "exponent_p", "optimizer", "model", "data", "init", "targets")
"""Settings that are matched before others."""
NOT_SETTINGS = frozenset(
    {
        *("cell_id", "study", "status", "error", "diverged_step", "stuck_step", "steps_done"),
        *("seconds", "peak_memory_gb", "gamma", "adapter_sha256", "adapted_share"),
    }
)
"""Columns of ``cells`` that say how a cell ended, or follow from others."""
ROW = ["what", "quantity", "site", "stat", "batch", "rank"]
LAST = -1
"""Stands for the last step of each study, where these differ."""
NOT_RECORDED = "not recorded"
MOST_VALUES = 8
"""A longer list of values is cut in the middle."""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` finds.

    ``settings``: the settings that differ, with a column of texts for each study. ``rows``: a row
    per other study, matching curve, quantity (at each rank, for losses) and pair of steps:

    - ``study``: the other study, which is compared with the first one. ``curve``: the rule, the
      optimizer and what else separates the curves, as text;
    - ``what``: ``exponent``, ``p*`` or ``loss``; ``quantity``, ``site``, ``stat``, ``batch``,
      ``rank`` (NaN except for losses), ``step`` and ``other_step``;
    - ``value``, ``low``, ``high``, ``seeds``, ``ranks``: of the first study, with its 95 %
      interval; ``other``, ``other_low``, ``other_high``, ``other_seeds``, ``other_ranks``: of the
      other one. Losses are in nats per token;
    - ``difference``: ``other - value``, with its 95 % interval ``ci_low``, ``ci_high``;
    - ``paired``: whether the interval is over the differences of single seeds.
    """

    settings: pd.DataFrame
    rows: pd.DataFrame


def compare(studies: Mapping[str, StudyTables]) -> Comparison:
    """Compare the first of ``studies``, measured tables by name, with each of the others.

    Raises :class:`StudyError` if a study has no number in common with the first one.
    """
    (first, one), *others = studies.items()
    rows = []
    for name, other in others:
        pair = list(_pair(one, other))
        if not pair:
            raise StudyError(
                f"{first} and {name} have no exponent and no loss in common: compare studies with "
                "the same rules, optimizers, ranks and steps"
            )
        rows += [{"study": name, **row} for row in pair]
    return Comparison(differing_settings(studies), pd.DataFrame(rows))


def differing_settings(studies: Mapping[str, StudyTables]) -> pd.DataFrame:
    """The columns of ``cells`` whose values differ between studies: ``setting``, and the values in
    each study as text. A hash is left out if the name of what it is a hash of differs too."""
    cells = {name: tables.cells for name, tables in studies.items()}
    texts: dict[str, list[str]] = {}
    for column in dict.fromkeys(column for one in cells.values() for column in one):
        if column not in NOT_SETTINGS and not str(column).startswith("probes_"):
            shown = [_values_text(one.get(column)) for one in cells.values()]
            unused = {NOT_RECORDED, "none", "False"}  # an older record lacks what is off by default
            if len(set(shown)) > 1 and not (NOT_RECORDED in shown and set(shown) <= unused):
                texts[str(column)] = shown
    known = {name for name in texts if not set(HASH_OF.get(name, ())) & texts.keys()}
    rows = [[name, *shown] for name, shown in texts.items() if name in known]
    return pd.DataFrame(rows, columns=["setting", *cells])


def _values_text(values: "pd.Series[Any] | None") -> str:
    """``4, 16, 64``; ``none`` for a setting without a value, and what a record may lack."""
    if values is None:
        return NOT_RECORDED
    found = list(values.dropna().unique())
    try:
        texts = [setting_text(value) for value in sorted(found)]
    except TypeError:
        texts = sorted(map(setting_text, found))
    if len(texts) > MOST_VALUES:
        texts = [*texts[:3], f"... ({len(texts)} values) ...", texts[-1]]
    return ", ".join(texts) or "none"


def matched_columns(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """The columns of two tables of labels in which a curve of one must equal that of the other.

    One by one, a column counts if some curves then still match.
    """
    names = dict.fromkeys([*FIRST_MATCHED, *one.columns])
    found: list[str] = []
    for name in names:
        if name in one and name in other:
            left, right = (set(_texts(labels, [*found, name])) for labels in (one, other))
            if left & right:
                found.append(name)
    return found


def _texts(labels: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """By row, the values of ``columns`` as texts, so that missing values are equal."""
    numbers = [pd.api.types.is_numeric_dtype(labels[name]) for name in columns]
    parts = [
        labels[name].astype(float).map(repr) if number else labels[name].astype(object).map(str)
        for name, number in zip(columns, numbers, strict=True)
    ]
    return zip(*parts, strict=True) if parts else iter([()] * len(labels))


class Sample(NamedTuple):
    """The values of a quantity in one study, by seed; the labels of the curve; step and ranks."""

    values: "pd.Series[float]"
    labels: Mapping[str, Any]
    step: int
    ranks: str


def _pair(one: StudyTables, other: StudyTables) -> Iterator[dict[str, Any]]:
    """The rows of :class:`Comparison` on two studies."""
    pair = one, other
    cells = [s.cells[np.isfinite(s.cells["rank"])] for s in pair]
    shared = set.intersection(*(set(rows["rank"]) for rows in cells))
    if len(shared) > 1:
        cells = [rows[rows["rank"].isin(shared)] for rows in cells]
    cells = [rows.assign(unit=_units(rows)).reset_index(drop=True) for rows in cells]
    labels = [curve_labels(rows).drop(columns=["unit", "study"], errors="ignore") for rows in cells]
    keys = matched_columns(*labels)
    steps = [set(s.probes["step"]) for s in pair]
    batches = set.intersection(*(set(s.probes["batch"]) for s in pair))
    has_heldout = all(s.metrics["eval_loss"].notna().any() for s in pair)
    found = []
    for study, rows, names, own in zip(pair, cells, labels, steps, strict=True):
        wanted = set.intersection(*steps) | {max(own, default=0)}
        slopes = _slopes(rows, study, wanted, batches)
        losses = _losses(rows, study.metrics, "eval_loss" if has_heldout else "loss")
        if not has_heldout:  # a training loss has every step
            losses = losses[losses["step"].isin(wanted | {losses["step"].max()})]
        found.append(_samples(pd.concat([*slopes, losses]), [str(n) for n in names], keys))
    rule = ["scaling", "exponent_p", "optimizer"]
    varying = [
        name
        for name in labels[0].columns.intersection(labels[1].columns)
        if name not in (*rule, *HASH_OF)
        and any(one.groupby(rule)[name].nunique(dropna=False).max() > 1 for one in labels)
    ]
    left, right = found
    for key, samples in left.items():
        for a, b in product(samples, right.get(key, [])):
            if key[-1] != LAST or a.step != b.step:
                row = dict(zip(ROW, key[len(keys) :], strict=False))
                yield {"curve": _curve_text(a.labels, b.labels, varying), **row, **_row(a, b)}


def _units(cells: pd.DataFrame) -> "pd.Series[str]":
    """The name of the sample unit of each cell: its pair of seed and data seed."""
    data_seed = cells["data_seed"] if "data_seed" in cells else cells["seed"]
    return cells["seed"].map("{:g}".format) + "/" + data_seed.map("{:g}".format)


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
    return rows.assign(span=[f"{low:g}-{high:g}" for low, high in ends])


def _losses(cells: pd.DataFrame, metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    """The losses of each cell after the first update, before it diverged or got stuck."""
    facts = curve_labels(cells).assign(rank=cells["rank"], end=end_steps(cells))
    rows = metrics[["cell_id", "step", name]].dropna().astype({"cell_id": str})
    rows = rows.merge(facts.assign(cell_id=cells["cell_id"].astype(str)), on="cell_id")
    rows = rows[(rows["step"] > 0) & (rows["step"] < rows["end"])]
    batch = TRAIN if name == "loss" else HELDOUT
    about = {"what": LOSS, "quantity": METRICS[name].label, "site": "", "stat": name}
    rows = rows.assign(**about, batch=batch, value=rows[name], ranks=1)
    return rows.assign(span=rows["rank"].map("{:g}".format))


def _samples(
    values: pd.DataFrame, labels: Sequence[str], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[Sample]]:
    """The samples of a study by the matched columns ``keys``, :data:`ROW` and step.

    Seeds that lack a rank of the others are left out.
    """
    last = values.groupby("what")["step"].transform("max") == values["step"]
    values = pd.concat([values.assign(at=values["step"]), values[last].assign(at=LAST)])
    found: dict[tuple[Any, ...], list[Sample]] = defaultdict(list)
    for rows in groups(values, [*labels, *ROW, "at"]):
        rows = rows[rows["ranks"] == rows["ranks"].max()]
        first = rows.iloc[0]
        [matched] = _texts(rows[:1], keys)
        sample = rows.set_index("unit")["value"].astype(float)
        place = tuple(None if pd.isna(first[name]) else first[name] for name in [*ROW, "at"])
        found[matched + place].append(Sample(sample, first, int(first["step"]), first["span"]))
    return found


def _curve_text(one: Mapping[str, Any], other: Mapping[str, Any], varying: Sequence[str]) -> str:
    """``AdamW, rsLoRA``, and the ``varying`` settings of the curves: ``lr=0.001`` if they share it,
    ``lr=0.001|0.002`` if they do not. So for the optimizer and the rule."""

    def words(curve: Mapping[str, Any]) -> list[str]:
        is_grid = curve["scaling"] == POWER and pd.isna(curve["exponent_p"])
        rule = "several rules" if is_grid else rule_label(curve["scaling"], curve["exponent_p"])
        return [label(curve["optimizer"]), rule, *(setting_text(curve[name]) for name in varying)]

    heads = ["", "", *(f"{name}=" for name in varying)]
    parts = zip(heads, words(one), words(other), strict=True)
    return ", ".join(head + "|".join(dict.fromkeys(texts)) for head, *texts in parts)


def _row(one: Sample, other: Sample) -> dict[str, Any]:
    """The numbers of a row."""
    value, low, high = mean_interval(one.values)
    other_value, other_low, other_high = mean_interval(other.values)
    difference, ci_low, ci_high, paired = difference_interval(one.values, other.values)
    return {
        "step": one.step,
        "other_step": other.step,
        "value": value,
        "low": low,
        "high": high,
        "seeds": len(one.values),
        "ranks": one.ranks,
        "other": other_value,
        "other_low": other_low,
        "other_high": other_high,
        "other_seeds": len(other.values),
        "other_ranks": other.ranks,
        "difference": difference,
        "ci_low": ci_low,
        "ci_high": ci_high,
        "paired": paired,
    }


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
    if min(len(one), len(other)) < 2:
        return difference, np.nan, np.nan, False
    n = np.array([len(one), len(other)])
    parts = np.array([one.var(), other.var()]) / n
    df = parts.sum() ** 2 / max(float((parts**2 / (n - 1)).sum()), 1e-300)
    half_width = float(t_critical(max(df, 1.0)) * np.sqrt(parts.sum()))
    return difference, difference - half_width, difference + half_width, False


def conclusions(rows: pd.DataFrame) -> list[str]:
    """What the differences say together, in sentences: of exponents and p*, and of losses."""
    found = []
    size, holds_0 = rows["difference"].abs(), (rows["ci_low"] <= 0) & (rows["ci_high"] >= 0)
    for what, noun, close in (
        (EXPONENT, "exponents", CLOSE),
        (P_STAR, "p*", CLOSE),
        (LOSS, "losses", 0),
    ):
        mine = rows["what"] == what
        if mine.any():
            agree = int((mine & (holds_0 | (size <= close))).sum())
            within = f"differ by at most {close:g}, or " if close else ""
            found.append(
                f"{agree} of {mine.sum()} {noun} agree: they {within}have a difference whose "
                f"{INTERVAL} holds 0. The median difference is {rounded(size[mine].median(), 3)}, "
                f"the largest {rounded(size[mine].max(), 3)}."
            )
    return found


def to_read(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows to read first: those at the first and last pair of steps of each quantity; losses
    at the last pair only. With the texts ``line`` (quantity and rank) and ``steps`` (``10|400`` if
    the studies end at other steps)."""
    ranks = ["" if pd.isna(rank) else f", rank {rank:g}" for rank in rows["rank"]]
    pairs = zip(rows["step"], rows["other_step"], strict=True)
    steps = [f"{a:g}" if a == b else f"{a:g}|{b:g}" for a, b in pairs]
    rows = rows.assign(line=rows["quantity"] + pd.Series(ranks, rows.index), steps=steps)
    by = rows.groupby(["study", "curve", "what", "quantity", "rank"], dropna=False)
    order = rows["step"] + rows["other_step"]
    first, last = (order.groupby(by.ngroup()).transform(f) == order for f in ("min", "max"))
    return rows[last | (first & (rows["what"] != LOSS))]
