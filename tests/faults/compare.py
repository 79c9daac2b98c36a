"""Compare the results of a disturbed study with those of an undisturbed one, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TABLES = ("metrics", "probes", "truncations")
NOT_COMPARED = {"metrics": ("seconds",)}
"""Columns that differ from run to run."""
RECORDED = ("status", "steps_done", "diverged_step", "stuck_step", "config", "sources", "gamma")
"""What the record of a cell must have in common."""
ALLOWED = ("config.yaml", "record.json", "lock", "adapter", *(f"{name}.parquet" for name in TABLES))
"""What may be in the folder of a cell that has ended."""


def differences(study: Path, undisturbed: Path) -> list[str]:
    """A line for each difference; empty if the studies have the same results."""
    wanted, found = _cells(undisturbed), _cells(study)
    lines = [f"cells: {sorted(found)} instead of {sorted(wanted)}"] if wanted != found else []
    if (study / "aside").exists():
        lines.append(f"results were moved aside: {sorted(p.name for p in study.glob('aside/*'))}")
    for cell in sorted(wanted & found):
        mine, theirs = study / "cells" / cell, undisturbed / "cells" / cell
        lines += [f"{cell}: {line}" for line in _cell_differences(mine, theirs)]
    return lines


def left_over(study: Path) -> list[str]:
    """Files in the folders of ended cells that are of no use.

    A kill after the record's end, or a call that fails there, may leave some.
    """
    return [
        f"{path.relative_to(study)} is left over"
        for path in sorted(study.glob("cells/*/*"))
        if path.name not in ALLOWED
    ]


def _cells(study: Path) -> set[str]:
    return {path.name for path in study.glob("cells/*")}


def _cell_differences(mine: Path, theirs: Path) -> list[str]:
    try:
        records = [json.loads((place / "record.json").read_text()) for place in (mine, theirs)]
    except (OSError, ValueError) as error:
        return [f"its record can't be read: {error}"]
    lines = [
        f"{key} is {records[0].get(key)} instead of {records[1].get(key)}"
        for key in RECORDED
        if _comparable(records[0].get(key)) != _comparable(records[1].get(key))
    ]
    for name in TABLES:
        lines += [f"{name}: {line}" for line in _table_differences(mine, theirs, name)]
    for path in sorted({p.name for place in (mine, theirs) for p in place.glob("adapter/*")}):
        contents = [place / "adapter" / path for place in (mine, theirs)]
        if not all(file.exists() for file in contents):
            lines.append(f"adapter/{path} is in one of them only")
        elif contents[0].read_bytes() != contents[1].read_bytes():
            lines.append(f"adapter/{path} differs")
    return lines


def _comparable(value: Any) -> Any:
    """Without what may differ between two commands for the same cells."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k not in ("pack", "checkpoint")}
    return value


def _table_differences(mine: Path, theirs: Path, name: str) -> list[str]:
    paths = [place / f"{name}.parquet" for place in (mine, theirs)]
    if not all(path.exists() for path in paths):
        return [] if not any(path.exists() for path in paths) else ["in one of them only"]
    try:
        found, wanted = (pq.read_table(path) for path in paths)
    except (OSError, pa.ArrowException) as error:
        return [f"can't be read: {error}"]
    if found.schema.names != wanted.schema.names or len(found) != len(wanted):
        return [f"{len(found)} rows instead of {len(wanted)}, or other columns"]
    left_out = NOT_COMPARED.get(name, ())
    return [
        f"column {column} differs"
        for column in wanted.schema.names
        if column not in left_out and not _same(found[column], wanted[column])
    ]


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns have the same bits. NaN equals NaN, and 0 is not -0."""
    if one.type != other.type:
        return False
    if pa.types.is_floating(one.type):
        bits = np.dtype(f"u{one.type.bit_width // 8}")
        arrays = [column.to_numpy().view(bits) for column in (one, other)]
        return np.array_equal(*arrays) and one.null_count == other.null_count
    return one.to_pylist() == other.to_pylist()
