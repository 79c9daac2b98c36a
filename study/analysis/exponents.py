"""The ``exponents`` table: the log-log slope of every statistic against rank, with its interval.

One row per curve (a configuration without its rank and seed), site, stat, batch and step: for every
layer, for the layers of every kind of projection and for all of them (``layer`` is ``mean_log`` or
``median``), and for quantities measured over the whole model (``layer = kind = model``).

The *logarithm* of the statistic is pooled over layers, cell by cell. Energies are not added,
because on SmolLM2 one ``down_proj`` holds 95 % of the energy of ``adapter_out``.
:data:`FIT_COLUMNS` defines the columns.

**Arrays.** One site at a time, probe rows become dense arrays of groups (``G``, a curve at a step
on a batch), seeds, ranks and layers (``L``). Values are never duplicated: a study can have 20
million.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Lines, fit_lines, t_critical
from study.analysis.grouping import CURVE_ID, codes, curve_labels, design
from study.errors import StudyError, unknown
from study.vocabulary.quantities import ALL_KINDS, MODEL_WIDE, POOLINGS, STATS


def pool(y_GSRL: Floats) -> tuple[Floats, Floats, Ints]:
    """The mean and the median of a log statistic over layers, and their number, ``[G, S, R]``. A
    layer counts if the seed has it at every rank that has any."""
    there = np.isfinite(y_GSRL)
    shared = (there | ~there.any(axis=-1, keepdims=True)).all(axis=2, keepdims=True)
    pooled = there & shared
    layers = pooled.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        mean = np.where(pooled, y_GSRL, 0.0).sum(axis=-1) / layers
    (median,) = quantiles(np.where(pooled, y_GSRL, np.nan), [0.5])
    return mean, median, layers


def quantiles(values: Floats, q: npt.ArrayLike) -> Floats:
    """``np.nanquantile`` along the last axis, which loops over rows in Python if there is a NaN."""
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
    """The usable probe rows ``N`` of one site, and the columns ``C`` fitted to them: ``L`` layers,
    then poolings. ``place_N``: in the flattened ``[G, S, R, L]``."""

    site: str
    row_N: Ints
    place_N: Ints
    shape: tuple[int, int, int, int]
    rank_R: Floats
    groups: pd.DataFrame
    columns: pd.DataFrame
    pools: list[Ints]

    def logs(self, values: npt.NDArray[np.floating]) -> Floats:
        """The log of a statistic's column of ``probes``, ``[G, S, R, L]``; NaN without one."""
        value_N = values[self.row_N].astype(np.float64)
        value_N[~(np.isfinite(value_N) & (value_N > 0))] = np.nan
        y = np.full(math.prod(self.shape), np.nan)
        y[self.place_N] = np.log(value_N, out=value_N)
        return y.reshape(self.shape)

    def with_pools(self, y_GSRL: Floats) -> tuple[Floats, Ints]:
        """``y_GSRL`` with the columns of the pools appended, ``[G, S, R, C]``, and the number of
        layers of each line, ``[G, C]``: the smallest over seeds."""
        pooled = [pool(y_GSRL[..., members]) for members in self.pools]
        columns = [column for mean, median, _ in pooled for column in (mean, median)]
        counts = [np.ones((len(y_GSRL), y_GSRL.shape[-1]), np.intp)]
        for *_, count in pooled:
            fewest = np.where(count > 0, count, count.max()).min(axis=(1, 2))
            counts += [fewest[:, None]] * len(POOLINGS)
        return np.stack([*np.moveaxis(y_GSRL, -1, 0), *columns], axis=-1), np.hstack(counts)


def grids(cells: pd.DataFrame, probes: pd.DataFrame) -> Iterator[Grid]:
    """The usable rows of ``probes``, site by site; ``cells`` is a table of :func:`design`."""
    site_N, sites = codes(probes["site"])
    cell_id_N, ids = codes(probes["cell_id"])
    cell_N = cells.index.get_indexer(pd.Index(ids))[cell_id_N]
    end_N = np.append(cells["end"].to_numpy(), 0.0)[cell_N]  # -1 for others: their end is 0
    usable_N = probes["step"].to_numpy() < end_N
    names = {name: codes(probes[name]) for name in ("batch", "layer", "kind")}
    curve_K, seed_K, rank_K = (cells[name].to_numpy() for name in ("curve", "seed", "rank"))
    for code, site in enumerate(sites):
        row = np.flatnonzero((site_N == code) & usable_N)
        if not len(row):
            continue
        cell, step = cell_N[row], probes["step"].to_numpy()[row].astype(np.int64)
        (batch, batches), (layer, layers), (kind, kinds) = (
            (numbers[row], words) for numbers, words in names.values()
        )
        # One number per group that sorts by curve, batch and step.
        number = (curve_K[cell] * len(batches) + batch) * (step.max() + 1) + step
        _, lead, group = np.unique(number, return_index=True, return_inverse=True)
        seed_S, seed = np.unique(seed_K[cell], return_inverse=True)
        rank_R, rank = np.unique(rank_K[cell], return_inverse=True)
        layer_L, first, of_layer = np.unique(layer, return_index=True, return_inverse=True)
        shape = len(lead), len(seed_S), len(rank_R), len(layer_L)
        place = np.ravel_multi_index((group, seed, rank, of_layer), shape)
        if (repeated := pd.Series(place).duplicated()).any():
            twice = probes.iloc[row[np.flatnonzero(repeated)[0]]]
            raise StudyError(
                f"probes has {site} of {twice['layer']} twice at step {twice['step']} "
                f"of cell {twice['cell_id']}: delete the cell and train it again"
            )
        kind_L = kind[first]
        block_L = probes["block"].to_numpy()[row[first]]
        single = np.flatnonzero([layers[k] != MODEL_WIDE for k in layer_L])
        pools = {kinds[k]: single[kind_L[single] == k] for k in np.unique(kind_L[single])}
        if len(single):
            pools[ALL_KINDS] = single
        rows = [(kinds[k], layers[n], b) for k, n, b in zip(kind_L, layer_L, block_L, strict=True)]
        rows += [(name, pooling, -1) for name in pools for pooling in POOLINGS]
        columns = pd.DataFrame(rows, columns=["kind", "layer", "block"])
        words, steps = np.array(batches, object)[batch[lead]], step[lead].astype(np.int32)
        yield Grid(
            site=site,
            row_N=row,
            place_N=place,
            shape=shape,
            rank_R=rank_R,
            groups=pd.DataFrame({"curve": curve_K[cell[lead]], "batch": words, "step": steps}),
            columns=columns.astype({"block": np.int32}),
            pools=list(pools.values()),
        )


NOT_STATS = ("cell_id", "step", "layer", "block", "kind", "site", "batch", "d_in", "d_out")
"""The columns of ``probes`` that identify a row or its layer. All others are statistics."""
FIT_COLUMNS = (
    *("site", "stat", "batch", "step", "kind", "layer", "block"),
    *("exponent", "ci_low", "ci_high", "interval", "seeds", "ranks", "rank_min", "rank_max"),
    *("points", "dropped", "layers"),
    *("log_rank_mean", "log_stat_mean", "se_slope", "se_mean", "cov", "df", "t_crit"),
    *("curvature", "se_curvature", "slope_low", "slope_high", "p_skew"),
    *("layer_p05", "layer_median", "layer_p95", "predicted"),
)
"""The columns of the table after the curve's; :mod:`study.analysis.predictions` fills the last.

- ``interval``: ``seeds`` if ``ci_low`` and ``ci_high`` are the 95 % interval over seeds, ``ranks``
  if there is one seed: they then show how straight its line is. ``none``: one seed at two ranks;
- ``points``: the cells in the fit; ``seeds * ranks - points`` are missing, and fitted. ``dropped``:
  the cells of the curve that are not in it, for any reason;
- ``layers``: the number of layers pooled. ``layer_p05``, ``layer_median``, ``layer_p95``: quantiles
  of the exponents of single layers, in the ``mean_log`` row over all kinds.
"""


def fit_exponents(
    cells: pd.DataFrame, probes: pd.DataFrame, *, stats: Sequence[str] | None = None
) -> pd.DataFrame:
    """Fit every statistic in ``probes`` against the rank of its cell, per seed and then over seeds.

    ``curve_id`` names the curve of a row, as in ``losses``. To fit some cells only, filter
    ``cells``, not ``probes``. Left out are infinite rank, values without a logarithm, and the rows
    of a cell from its ``diverged_step`` on.
    """
    measured = [str(name) for name in probes.columns if name not in NOT_STATS]
    measured = [name for name in measured if name not in STATS or STATS[name].fitted]
    for name in stats or ():
        if name not in measured:
            raise unknown("stat", name, measured)
    parts = []
    for grid in grids(design(cells), probes):
        for stat in stats or measured:
            y_GSRL = grid.logs(probes[stat].to_numpy())
            if np.isfinite(y_GSRL).any():
                y_GSRC, layers_GC = grid.with_pools(y_GSRL)
                parts.append(_rows(grid, stat, fit_lines(grid.rank_R, y_GSRC), layers_GC))
    rows = pd.DataFrame(columns=["curve", *FIT_COLUMNS], dtype=float)
    if parts:
        rows = pd.concat(parts, ignore_index=True)
    curve, labels = rows["curve"].to_numpy(int), curve_labels(cells)
    of_cell = labels[CURVE_ID].cat.codes
    rows = rows.assign(dropped=np.bincount(of_cell)[curve] - rows["points"])
    labels = labels[~of_cell.duplicated()].take(curve).reset_index(drop=True)
    for name in ("site", "stat", "batch", "kind", "layer", "interval"):
        values = rows[name].unique()
        known = {"batch": sorted(values), "interval": ["seeds", "ranks", "none"]}
        rows[name] = pd.Categorical(rows[name], categories=known.get(name, values))
    return pd.concat([labels, rows.reindex(columns=list(FIT_COLUMNS))], axis=1)


def _rows(grid: Grid, stat: str, lines: Lines, layers_GC: Ints) -> pd.DataFrame:
    """The lines of one site and stat, except those without a slope."""
    at = group, column = np.nonzero(np.isfinite(lines["slope"]))
    fitted = {name: values[at] for name, values in lines.items()}
    slope, df = fitted.pop("slope"), fitted["df"]
    t_crit = t_critical(df)
    half_width = t_crit * fitted["se_slope"]
    of_layers = np.full((3, *lines["slope"].shape), np.nan)
    if grid.pools:
        spread = quantiles(lines["slope"][:, grid.pools[-1]], [0.05, 0.5, 0.95])
        of_layers[:, :, -len(POOLINGS)] = spread
    one_seed = np.where(fitted["seeds"] == 1, "ranks", "seeds").astype(object)
    return pd.DataFrame(
        {
            **{str(name): values.to_numpy()[group] for name, values in grid.groups.items()},
            **{str(name): values.to_numpy()[column] for name, values in grid.columns.items()},
            "site": grid.site,
            "stat": stat,
            "exponent": slope,
            "ci_low": slope - half_width,
            "ci_high": slope + half_width,
            "interval": np.where(df == 0, "none", one_seed),
            **fitted,
            "layers": layers_GC[at],
            "t_crit": t_crit,
            "layer_p05": of_layers[0][at],
            "layer_median": of_layers[1][at],
            "layer_p95": of_layers[2][at],
        }
    )
