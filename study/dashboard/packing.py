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


Scale = dict[str, float]
"""``base`` and ``resolution``: the logarithm that the code 1 stands for, and the step from code to
code."""


def pack_values(
    values_KSW: npt.NDArray[np.floating], missing_KSW: npt.NDArray[np.bool_]
) -> list[tuple[Scale, bytes]]:
    """The ``[S, W]`` values of each of ``K`` cells in ``2 S W`` bytes, each with its scale.

    ``missing_KSW``: whether a value was not measured. A measured value can be NaN.
    """
    values = values_KSW.astype(np.float64)
    has_log = np.isfinite(values) & (values != 0) & ~missing_KSW
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(values, where=has_log, out=np.ones_like(values)))
    over = {"axis": (1, 2), "keepdims": True, "where": has_log}
    any_K11 = has_log.any(axis=(1, 2), keepdims=True)
    base_K11 = np.where(any_K11, logs.min(initial=np.inf, **over), 0.0)
    top_K11 = np.where(any_K11, logs.max(initial=-np.inf, **over), 0.0)
    resolution_K11 = np.maximum(RESOLUTION, (top_K11 - base_K11) / (LARGEST - 1))

    steps_up = np.rint((logs - base_K11) / resolution_K11) + 1
    codes = np.where(has_log, steps_up, 0.0).astype(np.int16)
    codes[has_log & (values < 0)] *= -1
    codes[np.isnan(values)] = NAN
    codes[values == math.inf] = INFINITE
    codes[values == -math.inf] = -INFINITE
    codes[missing_KSW] = MISSING
    # Differences overflow and wrap; the browser's sum wraps back.
    differences = np.diff(codes, axis=1, prepend=np.zeros_like(codes[:, :1]))
    signs_last = ((differences << 1) ^ (differences >> 15)).astype("<i2")
    planes = signs_last.view(np.uint8).reshape(len(codes), -1, 2).swapaxes(1, 2)
    return [
        ({"base": base, "resolution": resolution}, of_cell.tobytes())
        for base, resolution, of_cell in zip(
            base_K11.ravel().tolist(), resolution_K11.ravel().tolist(), planes, strict=True
        )
    ]


def pack_message(header: Any, parts: Sequence[bytes]) -> bytes:
    """The header's length in 4 bytes, the header as JSON, and the parts it describes."""
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])
