"""Probed values in two bytes each. A page of 20 cells, 210 layers and 200 steps stays under 10 MB.

A code holds the sign of a value and its logarithm in steps of 0.2 %, so the error is at most 0.1 %.
It is larger only in a block that spans more than 27 decades; the block's ``resolution`` says so.
Zero, NaN, both infinities and "not measured" have their own codes.

Codes are stored as differences from step to step, with the sign in the last bit and low bytes
before high bytes. gzip then sees many small numbers and zeros. ``page/values.js`` unpacks this.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESOLUTION = 2e-3
"""The natural logarithm between two codes. The largest error is half of it."""

LARGEST = 32_000
ZERO, NAN, INFINITE, MISSING = 0, 32_766, 32_767, -32_768
"""Codes other than ``±1 ... ±LARGEST``. ``-INFINITE`` is minus infinity."""


def pack_values(
    values_SW: npt.NDArray[np.floating], missing_SW: npt.NDArray[np.bool_]
) -> tuple[dict[str, Any], bytes]:
    """``({"base": ..., "resolution": ...}, bytes)``: the ``[S, W]`` values in ``2 S W`` bytes.

    ``missing_SW``: whether a value was not measured. A measured value can be NaN.
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
    # Differences overflow and wrap; the browser's sum wraps back.
    differences = np.diff(codes, axis=0, prepend=np.zeros((1, codes.shape[1]), np.int16))
    planes = (
        ((differences << 1) ^ (differences >> 15)).astype("<i2").view(np.uint8).reshape(-1, 2).T
    )
    return {"base": base, "resolution": resolution}, planes.tobytes()


def pack_message(header: Any, parts: Sequence[bytes]) -> bytes:
    """The header's length in 4 bytes, the header as JSON, and the parts it describes."""
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])
