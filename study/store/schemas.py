"""The tables on disk: names, columns and types."""

import pyarrow as pa

from study.vocabulary.quantities import METRICS, STATS

TEXT = pa.dictionary(pa.int32(), pa.string())
"""The type of a column whose strings repeat."""

_METRICS = pa.schema(
    [("step", pa.int32()), ("tokens", pa.int64())] + [(name, pa.float64()) for name in METRICS]
)
_PROBES = pa.schema(
    [("step", pa.int32()), ("layer", TEXT), ("block", pa.int32())]
    + [(name, TEXT) for name in ("kind", "site", "batch")]
    + [("d_in", pa.int32()), ("d_out", pa.int32())]
    + [(stat, pa.float32()) for stat in STATS]
)
_TRUNCATIONS = pa.schema([(name, pa.float64()) for name in ("kept", "loss", "share")])

SCHEMAS = {"metrics": _METRICS, "probes": _PROBES, "truncations": _TRUNCATIONS}
"""The tables that a cell writes; one without rows has no file.

- ``metrics``: a row per step (:data:`study.vocabulary.quantities.METRICS`);
- ``probes``: a row per step, layer, site and batch, with a column per statistic
  (:data:`~study.vocabulary.quantities.STATS`);
- ``truncations``: a row per lower rank. ``loss`` is the held-out loss after the last step with
  every delta_w cut to ``kept`` singular directions. ``share`` is their share of the squared norm
  of delta_w, mean over layers.
"""

DISTANCES = "distances"
"""The table of ``study distances``, which trains. It lies in the study's folder."""
