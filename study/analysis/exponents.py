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
  (:mod:`~study.analysis.fits`). ``dropped``: the cells of the curve that are
  not in it, for any reason;
- ``log_rank_mean``, ``log_stat_mean`` (natural logarithms), ``se_*``, ``cov``, ``t_crit``: for
  the line and its band (:func:`study.analysis.fits.fitted`);
- ``curvature``, ``se_curvature``: the coefficient of ``(log rank)^2`` in a quadratic fit, and its
  standard error over seeds. ``slope_low``, ``slope_high``: the slopes over the two lowest and over
  the two highest ranks;
- ``layers``: the number of layers pooled; 1 for a single layer;
- ``layer_p05``, ``layer_median``, ``layer_p95``: quantiles of the exponents of single layers,
  in the ``mean_log`` row over all kinds.

**Poolings.** Energies are never added over layers: on SmolLM2 one ``down_proj`` holds 95 % of the
energy of ``adapter_out``, so a pooled norm would be that of this layer. Layers are fixed effects.
The *logarithm* of the statistic is pooled over layers, by mean or median, cell by cell. The spread
of the exponents of single layers is reported beside it.

**Arrays.** One site at a time, probe rows become dense arrays of frames (``F``, a cell at a step on
a batch) by layers (``L``). Statistics are whole columns, so all further work is array operations
along an axis. Values are never duplicated: a study can have 20 million.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Lines, fit_lines, t_critical
from study.analysis.grouping import FIT_COLUMNS, Design, codes
from study.errors import StudyError, unknown
from study.vocabulary.quantities import ALL_KINDS, MODEL_WIDE, POOLINGS, STATS


def pool(y_GSRL: Floats) -> tuple[Floats, Floats, Ints]:
    """The mean and the median of a log statistic over layers, and the number of layers.

    All ``[G, S, R]``. Within a seed the same layers are pooled at every rank. If a layer were
    missing at high rank only (an overflow, a negative ``descent``), the change of layers would look
    like a slope. So a layer counts only if the seed has it at every rank. Ranks without any layer
    (a diverged cell) are ignored for this. The mean and median are NaN if no layer is left.
    """
    there = np.isfinite(y_GSRL)
    shared = (there | ~there.any(axis=-1, keepdims=True)).all(axis=2, keepdims=True)
    pooled = there & shared
    layers = pooled.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        mean = np.where(pooled, y_GSRL, 0.0).sum(axis=-1) / layers
    (median,) = quantiles(np.where(pooled, y_GSRL, np.nan), [0.5])
    return mean, median, layers


def quantiles(values: Floats, q: npt.ArrayLike) -> Floats:
    """Quantiles along the last axis without the NaNs, linear between order statistics.

    The first axis of the result is that of ``q``. NaN for a row without values. The same numbers as
    ``np.nanquantile``, which loops over rows in Python if there is a NaN.
    """
    rows = values.reshape(-1, values.shape[-1])
    ordered = np.sort(rows, axis=1)  # NaNs last
    count = np.isfinite(ordered).sum(axis=1)
    position = np.asarray(q, float)[:, None] * np.maximum(count - 1, 0)
    below = position.astype(np.intp)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    row = np.arange(len(ordered))
    low, high = ordered[row, below], ordered[row, above]
    found = np.where(count > 0, low + (high - low) * (position - below), np.nan)
    return found.reshape(-1, *values.shape[:-1])


@dataclass(frozen=True)
class Grid:
    """The usable probe rows ``N`` of one site, and the columns ``C`` that are fitted to them.

    The columns are the ``L`` layers and then the poolings of each of ``pools`` (the indices of the
    layers of a pool). The last pool is over all kinds. ``place_N`` is the place of a row in the
    flattened ``[G, S, R, L]``, whose sizes are ``shape``. A group ``G`` is a curve at a step on a
    batch.
    """

    site: str
    row_N: Ints
    place_N: Ints
    shape: tuple[int, int, int, int]
    rank_R: Floats
    curve_G: Ints
    batch_G: Ints
    step_G: Ints
    kind_C: list[str]
    layer_C: list[str]
    block_C: Ints
    pools: list[Ints]

    def logs(self, values: npt.NDArray[np.floating]) -> Floats:
        """The natural logarithm of a statistic's column of ``probes``, ``[G, S, R, L]``.

        NaN for values that are not positive or not finite.
        """
        value_N = values[self.row_N].astype(np.float64)
        value_N[~(np.isfinite(value_N) & (value_N > 0))] = np.nan
        y = np.full(math.prod(self.shape), np.nan)
        y[self.place_N] = np.log(value_N, out=value_N)
        return y.reshape(self.shape)

    def with_pools(self, y_GSRL: Floats) -> tuple[Floats, Ints]:
        """``y_GSRL`` with the columns of the pools appended, ``[G, S, R, C]``, and the number of
        layers of each line, ``[G, C]``.

        Within a seed a pool has the same layers at every rank, or none. Over seeds the number may
        differ: the smallest counts.
        """
        pooled = [pool(y_GSRL[..., members]) for members in self.pools]
        columns = [column for mean, median, _ in pooled for column in (mean, median)]
        counts = [np.ones((len(y_GSRL), y_GSRL.shape[-1]), np.intp)]
        for *_, count in pooled:
            fewest = np.where(count > 0, count, count.max()).min(axis=(1, 2))
            counts += [fewest[:, None]] * len(POOLINGS)
        return np.stack([*np.moveaxis(y_GSRL, -1, 0), *columns], axis=-1), np.hstack(counts)


def grids(design: Design, probes: pd.DataFrame) -> Iterator[Grid]:
    """The rows of ``probes`` that ``design`` can use, site by site. Omits sites without any."""
    site_N, sites = codes(probes["site"])
    cell_id_N, ids = codes(probes["cell_id"])
    place = {cell_id: k for k, cell_id in enumerate(design.cell_id_K)}
    cell_N = np.array([place.get(cell_id, -1) for cell_id in ids], np.int32)[cell_id_N]
    end_N = np.append(design.end_K, 0.0)[cell_N]  # a cell outside the design has -1: ends at 0
    usable_N = probes["step"].to_numpy() < end_N
    columns = {name: codes(probes[name]) for name in ("batch", "layer", "kind")}
    for code, site in enumerate(sites):
        row = np.flatnonzero((site_N == code) & usable_N)
        if len(row):
            yield _grid(design, probes, site, row, cell_N[row], columns)


def _grid(
    design: Design,
    probes: pd.DataFrame,
    site: str,
    row: Ints,
    cell: Ints,
    columns: dict[str, tuple[Ints, list[str]]],
) -> Grid:
    (batch_N, batches), (layer_N, layers), (kind_N, kinds) = (
        columns[name] for name in ("batch", "layer", "kind")
    )
    step, batch = probes["step"].to_numpy()[row].astype(np.int64), batch_N[row]
    # One number per group that sorts by curve, batch and step.
    number = (design.curve_K[cell] * len(batches) + batch) * (step.max() + 1) + step
    _, lead, group = np.unique(number, return_index=True, return_inverse=True)
    seed_S, seed = np.unique(design.seed_K[cell], return_inverse=True)
    rank_R, rank = np.unique(design.rank_K[cell], return_inverse=True)
    layer_L, layer = np.unique(layer_N[row], return_inverse=True)
    shape = len(lead), len(seed_S), len(rank_R), len(layer_L)
    place = np.ravel_multi_index((group, seed, rank, layer), shape)
    if (repeated := pd.Series(place).duplicated()).any():
        twice = probes.iloc[row[np.flatnonzero(repeated)[0]]]
        raise StudyError(
            f"probes has {twice['site']} of {twice['layer']} twice at step {twice['step']} "
            f"of cell {twice['cell_id']}: delete the cell and train it again"
        )

    kind_L, block_L = np.empty(len(layer_L), np.intp), np.empty(len(layer_L), np.intp)
    kind_L[layer], block_L[layer] = kind_N[row], probes["block"].to_numpy()[row]
    names = [layers[k] for k in layer_L]
    projections = np.flatnonzero([name != MODEL_WIDE for name in names])
    pools = {
        kinds[k]: projections[kind_L[projections] == k] for k in np.unique(kind_L[projections])
    }
    if len(projections):
        pools[ALL_KINDS] = projections
    return Grid(
        site=site,
        row_N=row,
        place_N=place,
        shape=shape,
        rank_R=rank_R,
        curve_G=design.curve_K[cell[lead]],
        batch_G=batch[lead],
        step_G=step[lead],
        kind_C=[*(kinds[k] for k in kind_L), *(kind for kind in pools for _ in POOLINGS)],
        layer_C=[*names, *(pooling for _ in pools for pooling in POOLINGS)],
        block_C=np.append(block_L, np.full(len(pools) * len(POOLINGS), -1)),
        pools=list(pools.values()),
    )


NOT_STATS = ("cell_id", "step", "layer", "block", "kind", "site", "batch", "d_in", "d_out")
"""The columns of ``probes`` that identify a row or its layer. All others are statistics."""
INTERVALS = ("seeds", "ranks", "none")


def fit_exponents(
    cells: pd.DataFrame,
    probes: pd.DataFrame,
    *,
    stats: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Fit every statistic in ``probes`` against the rank of its cell, per seed and then over seeds.

    Only the cells given are fitted: filter ``cells``, not ``probes``. A fit leaves out infinite
    rank, rows of a cell from its ``diverged_step`` on (all of them if that
    step is unknown), and values without a logarithm (zero, negative, not finite).

    ``stats`` are by default all those measured that the vocabulary does not exclude from fits. A
    quantity with fewer than two ranks has no row.

    Raises :class:`StudyError` for unknown ``stats``, for cells with the same curve,
    rank and seed, if no two ranks share a curve, and for a repeated row of ``probes``.
    """
    measured = _fitted_stats(probes)
    for name in stats or ():
        if name not in measured:
            raise unknown("stat", name, measured)

    design = Design.of(cells)
    names: dict[str, dict[str, int]] = {name: {} for name in ("site", "stat", "kind", "layer")}
    for name, known in (("batch", codes(probes["batch"])[1]), ("interval", INTERVALS)):
        names[name] = {word: code for code, word in enumerate(known)}
    parts = []
    for grid in grids(design, probes):
        for stat in stats or measured:
            y_GSRL = grid.logs(probes[stat].to_numpy())
            if np.isfinite(y_GSRL).any():
                y_GSRC, layers_GC = grid.with_pools(y_GSRL)
                lines = fit_lines(grid.rank_R, y_GSRC)
                parts.append(_rows(grid, stat, lines, layers_GC, names))
    return _table(parts, design, names)


def _fitted_stats(probes: pd.DataFrame) -> list[str]:
    """The statistics in ``probes``, except those that the vocabulary excludes from fits."""
    stats = [str(name) for name in probes.columns if name not in NOT_STATS]
    return [name for name in stats if name not in STATS or STATS[name].fitted]


def _rows(
    grid: Grid, stat: str, lines: Lines, layers_GC: Ints, names: dict[str, dict[str, int]]
) -> pd.DataFrame:
    """The lines of one site and stat, except those without a slope.

    Names are codes; ``names`` has the code of each, by column, and gets new ones.
    """

    def codes_of(column: str, words: Sequence[str]) -> Ints:
        known = names[column]
        return np.array([known.setdefault(word, len(known)) for word in words], np.int32)

    at = group, column = np.nonzero(np.isfinite(lines.slope))
    fitted = {field.name: getattr(lines, field.name)[at] for field in fields(lines)}
    slope, df = fitted.pop("slope"), fitted["df"]
    t_crit = t_critical(df)
    half_width = t_crit * fitted["se_slope"]
    of_layers = np.full((3, *lines.slope.shape), np.nan)
    if grid.pools:
        spread = quantiles(lines.slope[:, grid.pools[-1]], [0.05, 0.5, 0.95])
        of_layers[:, :, -len(POOLINGS)] = spread
    [site], [of_stat] = codes_of("site", [grid.site]), codes_of("stat", [stat])
    return pd.DataFrame(
        {
            "curve": grid.curve_G[group],
            "site": site,
            "stat": of_stat,
            "batch": grid.batch_G[group],
            "step": grid.step_G[group].astype(np.int32),
            "kind": codes_of("kind", grid.kind_C)[column],
            "layer": codes_of("layer", grid.layer_C)[column],
            "block": grid.block_C[column].astype(np.int32),
            "exponent": slope,
            "ci_low": slope - half_width,
            "ci_high": slope + half_width,
            "interval": np.where(df == 0, 2, fitted["seeds"] == 1),
            **fitted,
            "layers": layers_GC[at],
            "t_crit": t_crit,
            "layer_p05": of_layers[0][at],
            "layer_median": of_layers[1][at],
            "layer_p95": of_layers[2][at],
        }
    )


def _table(
    parts: Sequence[pd.DataFrame], design: Design, names: dict[str, dict[str, int]]
) -> pd.DataFrame:
    """The whole table, with names as categoricals."""
    rows = pd.DataFrame(columns=["curve", *FIT_COLUMNS], dtype=float)
    if parts:
        rows = pd.concat(parts, ignore_index=True)
    curve = rows["curve"].to_numpy(int)
    rows["dropped"] = design.cells_of_curve[curve] - rows["points"]
    for name, known in names.items():
        rows[name] = pd.Categorical.from_codes(rows[name].to_numpy(int), pd.Index(list(known)))
    labels = design.curves.take(curve).reset_index(drop=True)
    return pd.concat([labels, rows.reindex(columns=list(FIT_COLUMNS))], axis=1)
