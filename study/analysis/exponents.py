"""The ``exponents`` table: the log-log slope of every statistic against rank, with its interval.

One row per curve (a configuration without its rank and seed), site, stat, batch and step, for

- every layer (``layer`` is its module path),
- every kind of projection (``layer`` is ``mean_log`` or ``median``, over the layers of ``kind``),
- all layers (the same two with ``kind = all``), and
- quantities measured over the whole model (``layer = kind = model``: the gradient and the update of
  all adapters together).

:data:`~study.analysis.grouping.FIT_COLUMNS` lists its columns beside those of the curve:

- ``interval``: ``seeds`` if ``ci_low`` and ``ci_high`` are the 95 % interval over seeds (pairs of
  seed and data seed). ``ranks`` if there is one seed: they then show how straight its line is, and
  are not an interval for other seeds. ``none`` for one seed at two ranks;
- ``points``: the cells in the fit, which are the same ranks of every seed
  (:mod:`~study.analysis.blocks`). ``dropped``: the cells of the curve from ``rank_min`` that are
  not in it, for any reason;
- ``log_rank_mean``, ``log_stat_mean`` (natural logarithms), ``se_*``, ``cov``, ``t_crit``: for
  the line and its band (:func:`study.analysis.fits.fitted`);
- ``curvature``, ``se_curvature``: the coefficient of ``(log rank)^2`` in a quadratic fit, and its
  standard error over seeds. ``slope_low``, ``slope_high``: the slopes over the two lowest and over
  the two highest ranks;
- ``layers``: the number of layers pooled; 1 for a single layer;
- ``layer_p05``, ``layer_median``, ``layer_p95``: quantiles of the exponents of single layers,
  in the ``mean_log`` row over all kinds.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Ints, Lines, fit_lines, t_critical
from study.analysis.grids import Grid, grids
from study.analysis.grouping import FIT_COLUMNS, Design, codes
from study.analysis.pooling import quantiles
from study.errors import unknown
from study.vocabulary.quantities import POOLINGS, STATS

NOT_STATS = ("cell_id", "step", "layer", "block", "kind", "site", "batch", "d_in", "d_out")
"""The columns of ``probes`` that identify a row or its layer. All others are statistics."""
WEIGHTS = ("none", "rank")
INTERVALS = ("seeds", "ranks", "none")
BEND = ("curvature", "se_curvature", "slope_low", "slope_high")
"""What the table says of a line that is not straight."""


def fit_exponents(
    cells: pd.DataFrame,
    probes: pd.DataFrame,
    *,
    rank_min: float = 0,
    weights: str = "none",
    stats: Sequence[str] | None = None,
    predict: Callable[[pd.DataFrame], npt.ArrayLike] | None = None,
) -> pd.DataFrame:
    """Fit every statistic in ``probes`` against the rank of its cell, per seed and then over seeds.

    Only the cells given are fitted: filter ``cells``, not ``probes``. A fit leaves out ranks below
    ``rank_min``, infinite rank, rows of a cell from its ``diverged_step`` on (all of them if that
    step is unknown), and values without a logarithm (zero, negative, not finite).

    ``weights="rank"`` weighs a cell by its rank, as if the variance of a log statistic fell as 1/r.
    ``stats`` are by default all those measured that the vocabulary does not exclude from fits.
    ``predict`` gets the finished table and returns ``predicted``, one number per row.

    A quantity with fewer than two ranks has no row.

    Raises :class:`StudyError` for unknown ``weights`` or ``stats``, for cells with the same curve,
    rank and seed, if no two ranks share a curve, and for a repeated row of ``probes``.
    """
    if weights not in WEIGHTS:
        raise unknown("weights", weights, WEIGHTS)
    measured = _fitted_stats(probes)
    for name in stats or ():
        if name not in measured:
            raise unknown("stat", name, measured)

    design = Design.of(cells, rank_min)
    table = _Table(design, codes(probes["batch"])[1])
    for grid in grids(design, probes):
        weight_F = grid.rank_F if weights == "rank" else None
        for stat in stats or measured:
            y_FL = grid.logs(probes[stat].to_numpy())
            if np.isfinite(y_FL).any():
                y_FC, layers_FC = grid.with_pools(y_FL)
                lines = fit_lines(grid.rank_F, y_FC, grid.strands, weight_F)
                table.add(grid, stat, lines, layers_FC)

    exponents = table.frame()
    if predict is not None:
        exponents["predicted"] = np.asarray(predict(exponents), float)
    return exponents


def _fitted_stats(probes: pd.DataFrame) -> list[str]:
    """The statistics in ``probes``, except those that the vocabulary excludes from fits."""
    stats = [str(name) for name in probes.columns if name not in NOT_STATS]
    return [name for name in stats if name not in STATS or STATS[name].fitted]


class _Table:
    """The table under construction: arrays per column, turned into a frame once at the end."""

    def __init__(self, design: Design, batches: list[str]) -> None:
        self.design = design
        self.parts: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
        self.names: dict[str, dict[str, int]] = {
            name: {} for name in ("site", "stat", "kind", "layer")
        }
        self.names["batch"] = {name: code for code, name in enumerate(batches)}
        self.names["interval"] = {name: code for code, name in enumerate(INTERVALS)}

    def add(self, grid: Grid, stat: str, lines: Lines, layers_FC: Ints) -> None:
        """Add the lines of one site and stat, except those without a slope."""
        at = group, column = np.nonzero(np.isfinite(lines.slope))
        curve = grid.curve_G[group]
        slope, df, points, seeds = lines.slope[at], lines.df[at], lines.points[at], lines.seeds[at]
        t_crit = t_critical(df)
        half_width = t_crit * lines.se_slope[at]
        # Within a seed a pool has the same layers at every rank, or none. Over seeds the number may
        # differ: the smallest counts.
        layers_GC = np.minimum.reduceat(
            np.where(layers_FC > 0, layers_FC, layers_FC.max()), grid.strands.start_G, axis=0
        )
        of_layers = np.full((3, *lines.slope.shape), np.nan)
        if grid.pools:
            of_layers[:, :, -len(POOLINGS)] = quantiles(
                lines.slope[:, grid.pools[-1]], [0.05, 0.5, 0.95]
            )
        columns = {
            "curve": curve,
            "site": np.broadcast_to(self._code("site", [grid.site]), group.shape),
            "stat": np.broadcast_to(self._code("stat", [stat]), group.shape),
            "batch": grid.batch_G[group],
            "step": grid.step_G[group],
            "kind": self._code("kind", grid.kind_C)[column],
            "layer": self._code("layer", grid.layer_C)[column],
            "block": grid.block_C[column],
            "exponent": slope,
            "ci_low": slope - half_width,
            "ci_high": slope + half_width,
            "interval": np.where(df == 0, 2, seeds == 1),
            "seeds": seeds,
            "ranks": lines.ranks[at],
            "rank_min": lines.rank_min[at],
            "rank_max": lines.rank_max[at],
            "points": points,
            "dropped": self.design.cells_of_curve[curve] - points,
            "layers": layers_GC[at],
            "log_rank_mean": lines.log_rank_mean[at],
            "log_stat_mean": lines.log_stat_mean[at],
            "se_slope": lines.se_slope[at],
            "se_mean": lines.se_mean[at],
            "cov": lines.cov[at],
            "df": df,
            "t_crit": t_crit,
            **{name: getattr(lines, name)[at] for name in BEND},
            "layer_p05": of_layers[0][at],
            "layer_median": of_layers[1][at],
            "layer_p95": of_layers[2][at],
        }
        for name, values in columns.items():
            # int32 for counts and codes halves the table.
            compact = values if values.dtype == np.float64 else values.astype(np.int32)
            self.parts[name].append(compact)

    def frame(self) -> pd.DataFrame:
        """The table, with names as categoricals. Parts are freed as they are joined."""
        curve = self._joined("curve", np.int32)
        columns: dict[str, Any] = {
            str(name): label.take(curve).array for name, label in self.design.curves.items()
        }
        for name in FIT_COLUMNS:
            if name == "predicted":
                columns[name] = np.full(len(curve), np.nan)
            elif name in self.names:
                columns[name] = pd.Categorical.from_codes(
                    self._joined(name, np.int32), pd.Index(list(self.names[name]))
                )
            else:
                columns[name] = self._joined(name, np.float64)
        return pd.DataFrame(columns, copy=False)

    def _code(self, column: str, names: Sequence[str]) -> Ints:
        known = self.names[column]
        return np.array([known.setdefault(name, len(known)) for name in names], np.int32)

    def _joined(self, name: str, dtype_if_empty: npt.DTypeLike) -> npt.NDArray[Any]:
        parts = self.parts.pop(name, [])
        return np.concatenate(parts) if parts else np.empty(0, dtype_if_empty)
