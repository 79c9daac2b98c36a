"""Which cells belong together: a curve is one configuration at several ranks and seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.fits import Floats, Ints
from study.errors import StudyError
from study.vocabulary.scaling import RULES

NOT_A_CURVE = frozenset(
    {
        # What a curve runs over, and what follows from it.
        *("cell_id", "rank", "gamma", "seed", "data_seed"),
        # How a cell went, on what, and from which code.
        *("status", "error", "diverged_step", "steps_done", "seconds", "peak_memory_gb", "device"),
        *(
            "device_name",
            "threads",
            "contraction",
            "pack",
            "fold",
            "versions",
            "git",
            "identity_version",
        ),
    }
)
"""The columns of ``cells`` that do not tell curves apart. Every other one does, so that a sweep over a key this list
has never heard of never puts two curves into one fit.
"""

CURVE_FIRST = (
    *(
        "study",
        "model",
        "quant_bits",
        "data",
        "optimizer",
        "scaling",
        "exponent_p",
        "alpha",
        "lr",
        "init",
        "targets",
    ),
)
"""The curve's columns that lead the ``exponents`` table; any others of ``cells`` follow."""

FIT_COLUMNS = (
    *("site", "stat", "batch", "step", "kind", "layer", "block"),
    *("exponent", "ci_low", "ci_high", "interval", "seeds", "ranks", "rank_min", "rank_max"),
    *("points", "dropped", "layers"),
    *("log_rank_mean", "log_stat_mean", "se_slope", "se_mean", "cov", "df", "t_crit"),
    *("layer_p05", "layer_median", "layer_p95", "spread_slope", "predicted"),
)
"""What :func:`study.analysis.exponents.fit_exponents` adds to the curve's own columns."""

PREDICTION_COLUMNS = ("lazy", "clipped", "eps_ratio")
"""What :func:`study.analysis.predictions.with_predictions` adds beside filling ``predicted``."""

VERDICT_COLUMNS = ("margin", "p_value", "p_holm", "primary", "verdict")
"""What :func:`study.analysis.verdicts.with_verdicts` adds to those."""


def curve_columns(exponents: pd.DataFrame) -> list[str]:
    """The columns of ``exponents`` that say which curve a row belongs to: ``study``, ``model``, and so on."""
    return [
        name
        for name in exponents.columns
        if name not in {*FIT_COLUMNS, *PREDICTION_COLUMNS, *VERDICT_COLUMNS}
    ]


def numbered(table: pd.DataFrame, columns: Iterable[str], within: Ints | None = None) -> Ints:
    """A number per distinct combination of ``columns`` (and of ``within``), 0, 1, ... as they first appear.

    Column by column, so that no row ever becomes a tuple: a million rows in a tenth of a second.
    """
    number = np.zeros(len(table), np.int64) if within is None else within.astype(np.int64)
    for name in columns:
        codes, values = pd.factorize(table[name].array, use_na_sentinel=False)
        number = pd.factorize(number * max(len(values), 1) + codes)[0]
    return number


def firsts(number: Ints) -> Ints:
    """Where each number of :func:`numbered` first appears, in the order of the numbers."""
    return np.unique(number, return_index=True)[1]


@dataclass(frozen=True)
class Design:
    """The cells of a study, sorted by curve, seed and rank (``K`` of them).

    ``seed_K`` numbers the pairs of ``seed`` and ``data_seed``; rows from step ``end_K`` on are not used;
    ``cells_of_curve`` counts them, used or not; ``curves`` has one row per curve.
    """

    cell_id_K: list[str]
    curve_K: Ints
    seed_K: Ints
    rank_K: Floats
    end_K: Floats
    cells_of_curve: Ints
    curves: pd.DataFrame

    @classmethod
    def of(cls, cells: pd.DataFrame, rank_min: float = 0) -> "Design":
        """Ranks below ``rank_min`` are not part of it. Raises :class:`StudyError` as ``fit_exponents`` says."""
        cells = cells[cells["rank"] >= rank_min].reset_index(drop=True)
        labels = curve_labels(cells)
        curve = (
            labels.groupby(list(labels), dropna=False, observed=True, sort=False)
            .ngroup()
            .to_numpy(np.intp)
        )
        units = [name for name in ("seed", "data_seed") if name in cells]
        seed = cells.groupby(units, dropna=False).ngroup().to_numpy(np.intp)
        rank = cells["rank"].to_numpy(float)
        _refuse_twins(cells, curve, seed)
        _refuse_scattered(labels, curve, rank)

        diverged = (cells["status"] == "diverged").to_numpy(bool)
        # A pack goes on measuring a diverged cell's frozen weights; without its step, nothing of it can be trusted.
        step = cells["diverged_step"].astype(float).fillna(0.0) if "diverged_step" in cells else 0.0
        end = np.where(diverged, step, np.inf)
        end[np.isinf(rank)] = 0.0
        order = np.lexsort((rank, seed, curve))
        return cls(
            cell_id_K=cells["cell_id"].astype(str).iloc[order].tolist(),
            curve_K=curve[order],
            seed_K=seed[order],
            rank_K=rank[order],
            end_K=end[order],
            cells_of_curve=np.bincount(curve),
            curves=labels[~pd.Series(curve).duplicated()].reset_index(drop=True),
        )


def curve_labels(cells: pd.DataFrame) -> pd.DataFrame:
    """The columns that tell curves apart, ``exponent`` renamed ``exponent_p`` and filled with the rule's own p."""
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
        if not pd.api.types.is_numeric_dtype(
            labels[name]
        ):  # lists and dicts too: compared by what they read like
            labels[name] = (
                labels[name].astype(object).map(str, na_action="ignore").astype("category")
            )
    first = [name for name in CURVE_FIRST if name in labels]
    return labels[first + [name for name in labels.columns if name not in first]]


def _refuse_twins(cells: pd.DataFrame, curve: Ints, seed: Ints) -> None:
    """A seed's ranks must be distinct on a curve: a twin would count twice, or hide a difference the table lacks."""
    place = pd.DataFrame({"curve": curve, "seed": seed, "rank": cells["rank"].to_numpy()})
    twins = place.duplicated(keep=False).to_numpy()
    if twins.any():
        same = (place == place[twins].iloc[0]).all(axis=1).to_numpy()
        ids = ", ".join(map(str, cells.loc[same, "cell_id"]))
        first = cells[same].iloc[0]
        raise StudyError(
            f"cells {ids} have the same rank {first['rank']:g}, seed {first['seed']} and configuration: keep one"
        )


def _refuse_scattered(labels: pd.DataFrame, curve: Ints, rank: Floats) -> None:
    """Two ranks, but no two on one curve: nothing could be fitted, and an empty table would not say why."""
    finite = pd.Series(rank).where(np.isfinite(rank))
    if finite.nunique() > 1 and finite.groupby(curve).nunique().max() < 2:
        differing = ", ".join(
            str(name) for name in labels if labels[name].nunique(dropna=False) > 1
        )
        raise StudyError(
            f"no two ranks share a curve, the cells also differ in {differing}: sweep the rank with the rest fixed"
        )
