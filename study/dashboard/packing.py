"""Probed values in two bytes each: what keeps a page of 20 cells, 210 layers and 200 steps under 10 MB.

A value becomes its sign and the logarithm of its size in steps of 0.2 %, so that it is off by at most 0.1 % (more only
in a block whose values span more than 27 decades: the block then says so in ``resolution``). What has no logarithm has
a code of its own, so that zero, NaN, both infinities and "not measured" all survive. Codes are stored as differences
from one step to the next, the sign in the last bit, low bytes before high ones: what gzip then finds is many small
numbers and many zeros.
``page/values.js`` reads this.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESOLUTION = 2e-3
"""The step of a code in natural logarithms: half of it is the largest error."""

LARGEST = 32_000
ZERO, NAN, INFINITE, MISSING = 0, 32_766, 32_767, -32_768
"""Codes beside ``±1 ... ±LARGEST``; the negative of ``INFINITE`` is minus infinity."""


def pack_values(
    values_SW: npt.NDArray[np.floating], missing_SW: npt.NDArray[np.bool_]
) -> tuple[dict[str, Any], bytes]:
    """Steps by layers as ``({"base": ..., "resolution": ...}, bytes)``, ``2 S W`` of them.

    ``missing_SW`` says what was not measured, as against what was measured and is not a number.
    """
    values = values_SW.astype(np.float64)
    has_log = np.isfinite(values) & (values != 0) & ~missing_SW
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(values, where=has_log, out=np.ones_like(values)))
    base, top = (
        (float(logs[has_log].min()), float(logs[has_log].max())) if has_log.any() else (0.0, 0.0)
    )
    resolution = max(RESOLUTION, (top - base) / (LARGEST - 1))

    codes = np.where(has_log, np.rint((logs - base) / resolution) + 1, 0.0).astype(np.int16)
    codes[has_log & (values < 0)] *= -1
    codes[np.isnan(values)] = NAN
    codes[values == math.inf] = INFINITE
    codes[values == -math.inf] = -INFINITE
    codes[missing_SW] = MISSING
    differences = np.diff(
        codes, axis=0, prepend=np.zeros((1, codes.shape[1]), np.int16)
    )  # wraps, and so does the sum
    planes = (
        ((differences << 1) ^ (differences >> 15)).astype("<i2").view(np.uint8).reshape(-1, 2).T
    )
    return {"base": base, "resolution": resolution}, planes.tobytes()


def pack_message(header: Any, parts: Sequence[bytes]) -> bytes:
    """A JSON header and the bytes it describes in one piece: the header's length (4 bytes), the header, the parts."""
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])
