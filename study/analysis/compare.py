"""Studies side by side: the settings that differ, and the differences of exponents and losses.
docs/measured.md says which curves match, and defines the intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from study.analysis.exponents import fit_exponents
from study.analysis.fits import mean_interval
from study.analysis.grouping import (
    FOLLOWS,
    NOT_A_CURVE,
    curve_columns,
    curve_labels,
    distinguishing,
    groups,
    numbered,
)
from study.analysis.losses import final_losses
from study.analysis.verdicts import rows_of_condition
from study.analysis.wording import (
    INTERVAL,
    curve_names,
    interval_text,
    rounded,
    setting_labels,
    setting_text,
)
from study.errors import StudyError
from study.vocabulary.quantities import METRICS, QUANTITIES
from study.vocabulary.thresholds import CONFIDENCE

if TYPE_CHECKING:
    from study.store import StudyTables

EXPONENT, LOSS = "exponent", "loss"
"""The values of ``what``."""
CLOSE = {EXPONENT: 0.01, LOSS: 0.0}
"""Numbers that differ by at most this agree, even if the interval excludes 0."""
AXES = ("rank", "seed", "data_seed")
PLACE = ["what", "quantity", "rank", "at"]


def compare(studies: Mapping[str, StudyTables]) -> pd.DataFrame:
    """Compare the first of ``studies``, measured tables by name, with each of the others: a row per
    other study, matching curve and quantity, at the ranks that both studies have.

    - ``study``: the other study. ``curve``: optimizer, rule and what else separates the curves;
    - ``what``: ``exponent`` or ``loss`` (held out, nats per token). ``at``: at the ``first`` step
      of the quantity or at the ``last`` one. ``rank``: NaN except for losses;
    - ``value``, ``low``, ``high``, ``seeds``, ``step``: of the first study, with its 95 % interval.
      The same names after ``other``: of the other study;
    - ``difference``: ``other - value``, with its interval ``ci_low``, ``ci_high``; ``paired``:
      whether that is over the differences of single seeds.
    """
    (first, one), *others = studies.items()
    rows = []
    for name, other in others:
        if not (pair := list(_pair(one, other))):
            raise StudyError(
                f"{first} and {name} have no exponent and no loss in common: compare studies with "
                "the same ranks"
            )
        rows += [{"study": name, **row} for row in pair]
    return pd.DataFrame(rows)


def differing_settings(studies: Mapping[str, StudyTables]) -> pd.DataFrame:
    """The settings whose values differ, with a column of texts for each study; without what older
    records lack."""
    cells = {name: tables.cells for name, tables in studies.items()}
    columns = [str(column) for column in next(iter(cells.values()))]
    kept = [c for c in columns if c in AXES or c not in NOT_A_CURVE | {"study"}]
    kept = [column for column in kept if all(column in one for one in cells.values())]
    texts = {column: [_values_text(one[column]) for one in cells.values()] for column in kept}
    texts = {c: t for c, t in texts.items() if len(set(t)) > 1}
    rows = [[c, *t] for c, t in texts.items() if not set(FOLLOWS.get(c, ())) & texts.keys()]
    return pd.DataFrame(rows, columns=["setting", *cells])


def _values_text(values: pd.Series[Any]) -> str:
    """``4, 16, 64``; ``none`` for a setting without a value."""
    found = sorted(values.dropna().unique(), key=lambda one: (isinstance(one, str), one))
    return ", ".join(map(setting_text, found)) or "none"


def _pair(one: StudyTables, other: StudyTables) -> Iterator[dict[str, Any]]:
    """The rows of :func:`compare` on two studies."""
    ranks = {*one.cells["rank"]} & {*other.cells["rank"]} - {np.inf}
    if not ranks:
        return
    batches = {*one.probes["batch"]} & {*other.probes["batch"]}
    left, right = (_numbers(study, ranks, batches) for study in (one, other))
    settings = [str(name) for name in left.columns.intersection(right.columns)]
    settings = [name for name in settings if name not in (*PLACE, *OF_A_SEED, "curve")]
    keys = [name for name in settings if {*left[name]} & {*right[name]}]
    both = left.merge(right, on=[*keys, *PLACE], suffixes=("", "_other"))
    for rows in groups(both, ["curve", "curve_other", *PLACE]):
        row = rows.iloc[0]
        curve = " | ".join(dict.fromkeys((row["curve"], row["curve_other"])))
        yield {"curve": curve, **row[PLACE], **_differences(rows)}


OF_A_SEED = ("unit", "step", "value")


def _numbers(study: StudyTables, ranks: set[float], batches: set[str]) -> pd.DataFrame:
    """A row per seed, curve and :data:`PLACE`: its settings as texts, ``curve`` as in
    :func:`compare`, and :data:`OF_A_SEED`."""
    cells = study.cells[study.cells["rank"].isin(ranks)]
    names = [name for name in ("seed", "data_seed") if name in cells]
    units = cells[names].astype(str).agg("/".join, axis=1)
    cells = cells.assign(unit=units)  # so every seed has its own curve
    settings = curve_columns(curve_labels(cells))
    settings = [name for name in settings if name not in ("unit", "study")]
    losses = final_losses(cells, study.metrics).dropna(subset="loss")
    losses = losses.assign(what=LOSS, quantity=METRICS["eval_loss"].label, at="last")
    evaluated = study.metrics.dropna(subset="eval_loss").astype({"cell_id": str})
    last = evaluated.groupby("cell_id")["step"].max()
    losses = losses.assign(step=losses["cell_id"].map(last), value=losses["loss"])

    sites = study.probes["site"].isin([quantity.site for quantity in QUANTITIES])
    probes = study.probes[sites & study.probes["batch"].isin(batches)]
    measured = sorted({quantity.stat for quantity in QUANTITIES} & {*probes.columns})
    fits = fit_exponents(cells, probes, stats=measured)
    parts = []
    for quantity in QUANTITIES:
        rows = rows_of_condition(quantity, fits)
        of_curve = rows.assign(curve=numbered(rows, settings)).groupby("curve")
        at = np.where(rows["step"] == of_curve["step"].transform("max"), "last", "first")
        ends = (at == "last") | (rows["step"] == of_curve["step"].transform("min"))
        whole = rows["ranks"] == of_curve["ranks"].transform("max")  # the seed lacks no rank
        rows = rows.assign(what=EXPONENT, quantity=quantity.label, at=at, value=rows["exponent"])
        parts.append(rows[ends & whole].assign(rank=np.nan))
    columns = [*settings, *PLACE, *OF_A_SEED]
    found = pd.concat([part[columns] for part in [*parts, losses]], ignore_index=True)
    named = setting_labels(found, distinguishing(found, settings))
    texts = {name: found[name].astype(object).map(setting_text) for name in settings}
    return found.assign(curve=curve_names(found, named), **texts)


def _differences(rows: pd.DataFrame) -> dict[str, Any]:
    """The numbers of a row. ``rows``: every seed of the one study with every seed of the other. The
    interval of the difference is Student's t over pairs of equal seeds, otherwise Welch's."""
    row: dict[str, Any] = {}
    samples = []
    for end, value, head in (("", "value", ""), ("_other", "other", "other_")):
        own = rows.drop_duplicates(f"unit{end}").set_index(f"unit{end}")
        samples.append(own[f"value{end}"].astype(float))
        row |= dict(
            zip((value, f"{head}low", f"{head}high"), mean_interval(samples[-1]), strict=True)
        )
        row |= {f"{head}seeds": len(own), f"{head}step": int(own[f"step{end}"].iloc[0])}
    one, other = samples
    low = high = np.nan
    if paired := set(one.index) == set(other.index):
        difference, low, high = mean_interval(other - one)
    else:
        difference = float(other.mean() - one.mean())
        if min(len(one), len(other)) > 1 and one.var() + other.var() > 0:
            welch = stats.ttest_ind(other, one, equal_var=False)
            low, high = map(float, welch.confidence_interval(CONFIDENCE))
    return row | {"difference": difference, "ci_low": low, "ci_high": high, "paired": paired}


def conclusion(rows: pd.DataFrame) -> str:
    """``2 of 9 exponents and 0 of 2 losses agree; ...``: a sentence on the rows of one study."""
    agree, largest = [], []
    for what, own in rows.groupby("what"):
        size = own["difference"].abs()
        same = (size <= CLOSE[str(what)]) | ((own["ci_low"] <= 0) & (own["ci_high"] >= 0))
        noun = {EXPONENT: "exponents", LOSS: "losses"}[str(what)]
        agree.append(f"{same.sum()} of {len(own)} {noun}")
        largest.append(f"{rounded(size.max(), 3)} ({what})")
    unknown = rows["ci_low"].isna().sum()
    more = f" {unknown} of the differences have no interval." if unknown else ""
    return (
        f"{' and '.join(agree)} agree: the {INTERVAL} of the difference holds 0, or exponents "
        f"differ by at most {CLOSE[EXPONENT]:g}. The largest difference is "
        f"{' and '.join(largest)}.{more}"
    )


def table_texts(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` as texts: ``study``, ``curve``, ``quantity``, ``step`` (``10|400`` if the studies
    end at other steps), the numbers ``A`` and ``B``, and ``B - A`` with its interval."""
    ranks = ["" if pd.isna(rank) else f", rank {rank:.0f}" for rank in rows["rank"]]
    steps = zip(rows["step"], rows["other_step"], strict=True)
    differences = zip(rows["difference"], rows["ci_low"], rows["ci_high"], strict=True)
    texts: dict[str, Any] = {
        "quantity": rows["quantity"] + pd.Series(ranks, rows.index),
        "step": ["|".join(dict.fromkeys(map(str, pair))) for pair in steps],
        "A": [rounded(value, 3) for value in rows["value"]],
        "B": [rounded(value, 3) for value in rows["other"]],
        "B - A": [interval_text(*difference, places=3) for difference in differences],
    }
    return rows[["study", "curve"]].assign(**texts)
