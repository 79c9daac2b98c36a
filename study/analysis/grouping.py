"""Which cells form a curve: those of one configuration at several ranks and seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.fits import Floats, Ints
from study.errors import StudyError
from study.vocabulary.scaling import RULES
from study.vocabulary.statuses import END_COLUMNS, end_step

NOT_A_CURVE = frozenset(
    {
        # The axes of a curve, and columns that follow from them.
        *("cell_id", "rank", "gamma", "seed", "data_seed", "adapter_sha256"),
        "adapted_share",  # follows from the model and the targets
        # How a cell ended, and on which device.
        *("status", "error", "diverged_step", "stuck_step", "steps_done", "seconds"),
        *("peak_memory_gb", "device"),
        # The schedule of measurements, which does not change their values.
        *("probes_every", "probes_steps", "probes_sites", "probes_stats", "probes_batch"),
        *("probes_truncations", "eval_every", "answer_tokens"),
    }
)
"""The columns of ``cells`` that do not separate curves. Every other column does, also one that is
not known here."""

CURVE_FIRST = (
    *("study", "model", "quant_bits", "data", "optimizer", "scaling", "exponent_p", "alpha", "lr"),
    *("init", "targets"),
)
"""The curve's columns that lead the ``exponents`` table; any others of ``cells`` follow."""

HASH_OF = {
    "model_sha256": ("model", "width"),
    "tokenizer_sha256": ("model",),
    "data_sha256": ("data",),
}
"""For each hash, the columns that name its source."""

FIT_COLUMNS = (
    *("site", "stat", "batch", "step", "kind", "layer", "block"),
    *("exponent", "ci_low", "ci_high", "interval", "seeds", "ranks", "rank_min", "rank_max"),
    *("points", "dropped", "layers"),
    *("log_rank_mean", "log_stat_mean", "se_slope", "se_mean", "cov", "df", "t_crit"),
    *("curvature", "se_curvature", "slope_low", "slope_high"),
    *("layer_p05", "layer_median", "layer_p95", "predicted"),
)
"""The columns that :func:`study.analysis.exponents.fit_exponents` adds to the curve's."""

PREDICTION_COLUMNS = ("lazy", "clipped", "eps_ratio")
"""The columns that :func:`study.analysis.predictions.with_predictions` adds."""

VERDICT_COLUMNS = (
    *("factor", "margin", "p_stable", "p_slope", "p_beyond", "p_bent"),
    *("bent", "primary", "verdict"),
)
"""The columns that :func:`study.analysis.verdicts.with_verdicts` adds."""


def curve_columns(exponents: pd.DataFrame) -> list[str]:
    """The columns of ``exponents`` that identify the curve: ``study``, ``model``, and so on."""
    others = {*FIT_COLUMNS, *PREDICTION_COLUMNS, *VERDICT_COLUMNS}
    return [name for name in exponents.columns if name not in others]


def distinguishing(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Those of ``columns`` that a label must name to separate the curves of ``rows``.

    The optimizer and the rule are not among them: labels name both in any case. Omits columns that
    are constant within an optimizer, such as eps, and hashes that are constant within a name.
    """
    beside = [name for name in columns if name not in ("optimizer", "scaling", "exponent_p")]
    return [
        name
        for name in beside
        if _varies(rows, name, "optimizer") and _varies(rows, name, *HASH_OF.get(name, ()))
    ]


def _varies(rows: pd.DataFrame, column: str, *within: str) -> bool:
    """Whether ``column`` has several values in rows with the same values of ``within``."""
    if rows[column].nunique(dropna=False) < 2:  # most columns; to group the rows takes longer
        return False
    same = [rows[name].astype(object) for name in within if name in rows]
    values = rows.groupby(same or np.zeros(len(rows)), dropna=False)[column]
    return bool(values.nunique(dropna=False).max() > 1)


def numbered(table: pd.DataFrame, columns: Iterable[str], within: Ints | None = None) -> Ints:
    """Numbers the distinct combinations of ``columns`` (and ``within``), in order of appearance.

    Returns the number of each row. It works column by column and makes no tuple of any row: a
    million rows take a tenth of a second.
    """
    number = np.zeros(len(table), np.int64) if within is None else within.astype(np.int64)
    for name in columns:
        codes, values = pd.factorize(table[name], use_na_sentinel=False)
        number = pd.factorize(number * max(len(values), 1) + codes)[0]
    return number


def firsts(number: Ints) -> Ints:
    """The index at which each number of :func:`numbered` first appears, by number."""
    return np.unique(number, return_index=True)[1]


def end_steps(cells: pd.DataFrame) -> Floats:
    """Per cell the first step whose rows are not used: those of a diverged or a stuck cell.

    A pack still measures a diverged cell, with frozen weights.
    """
    columns = [name for name in cells if name == "status" or name in END_COLUMNS]
    return np.array([end_step(cell) for cell in cells[columns].to_dict("records")])


def curve_numbers(cells: pd.DataFrame) -> Ints:
    """A number per cell, equal for cells of one curve: 0, 1, ... in order of first appearance."""
    labels = curve_labels(cells)
    return numbered(labels, labels.columns)


def seed_numbers(cells: pd.DataFrame) -> Ints:
    """A number for each pair of seed and data seed: the sample unit of every interval."""
    units = [name for name in ("seed", "data_seed") if name in cells]
    return cells.groupby(units, dropna=False).ngroup().to_numpy(np.intp)


def codes(column: "pd.Series[str]") -> tuple[Ints, list[str]]:
    """A column of strings as integers, and the strings they stand for.

    Nothing is copied if the column is categorical.
    """
    values = column.astype("category").cat
    return values.codes.to_numpy(), [str(name) for name in values.categories]


@dataclass(frozen=True)
class Design:
    """The cells of a study (``K`` of them), each in its curve, with its seed and rank.

    - ``seed_K``: a number per pair of ``seed`` and ``data_seed``;
    - ``end_K``: the first step whose rows are not used;
    - ``cells_of_curve``: the number of cells of each curve, used or not;
    - ``curves``: one row per curve.
    """

    cell_id_K: list[str]
    curve_K: Ints
    seed_K: Ints
    rank_K: Floats
    end_K: Floats
    cells_of_curve: Ints
    curves: pd.DataFrame

    @classmethod
    def of(cls, cells: pd.DataFrame) -> "Design":
        """The design of ``cells``.

        Raises :class:`StudyError` if a curve has two cells of one rank and seed, or if there are
        several ranks and no curve has two.
        """
        cells = cells.reset_index(drop=True)
        labels = curve_labels(cells)
        curve, seed = numbered(labels, labels.columns), seed_numbers(cells)
        rank = cells["rank"].to_numpy(float)
        _refuse_twins(cells, curve, seed)
        _refuse_scattered(labels, curve, rank)
        end = end_steps(cells)
        end[np.isinf(rank)] = 0.0
        return cls(
            cell_id_K=cells["cell_id"].astype(str).tolist(),
            curve_K=curve,
            seed_K=seed,
            rank_K=rank,
            end_K=end,
            cells_of_curve=np.bincount(curve),
            curves=labels[~pd.Series(curve).duplicated()].reset_index(drop=True),
        )


def curve_labels(cells: pd.DataFrame) -> pd.DataFrame:
    """The columns that separate curves. ``exponent``, now ``exponent_p``, has the rule's own p."""
    labels = cells[[name for name in cells.columns if name not in NOT_A_CURVE]]
    labels = labels.rename(columns={"exponent": "exponent_p"})
    own_p = (
        cells["scaling"]
        .astype(object)
        .map({name: rule.p for name, rule in RULES.items()})
        .astype(float)
    )
    labels["exponent_p"] = (
        labels["exponent_p"].astype(float).fillna(own_p) if "exponent_p" in labels else own_p
    )
    for name in labels:
        if not pd.api.types.is_numeric_dtype(labels[name]):  # lists and dicts too, as strings
            words = labels[name].astype(object).map(str, na_action="ignore")
            labels[name] = words.astype("category")
    first = [name for name in CURVE_FIRST if name in labels]
    return labels[first + [name for name in labels.columns if name not in first]]


def _refuse_twins(cells: pd.DataFrame, curve: Ints, seed: Ints) -> None:
    """Raise :class:`StudyError` for cells of one curve, rank and seed: one would count twice."""
    place = pd.DataFrame({"curve": curve, "seed": seed, "rank": cells["rank"].to_numpy()})
    twins = place.duplicated(keep=False).to_numpy()
    if twins.any():
        same = (place == place[twins].iloc[0]).all(axis=1).to_numpy()
        ids = ", ".join(map(str, cells.loc[same, "cell_id"]))
        first = cells[same].iloc[0]
        raise StudyError(
            f"cells {ids} have the same rank {first['rank']:g}, seed {first['seed']} and "
            "configuration: keep one"
        )


def _refuse_scattered(labels: pd.DataFrame, curve: Ints, rank: Floats) -> None:
    """Raise :class:`StudyError` if there are several ranks and no curve has two of them.

    A sweep over several learning rates may have rates of its own at each rank
    (:mod:`study.config.compose`). Its curves have one rank each; the best rates are read from
    them.
    """
    finite = pd.Series(rank).where(np.isfinite(rank))
    if finite.nunique() < 2 or finite.groupby(curve).nunique().max() > 1:
        return
    rule = numbered(labels, [str(name) for name in labels if name != "lr"])
    rates = labels["lr"].groupby([rule, finite]).nunique()
    if finite.groupby(rule).nunique().max() < 2 or rates.max() < 2:
        differing = ", ".join(
            str(name) for name in labels if labels[name].nunique(dropna=False) > 1
        )
        raise StudyError(
            f"no two ranks share a curve; the cells also differ in {differing}: "
            "sweep the rank with everything else fixed"
        )
