"""Compare the results of a disturbed study with those of an undisturbed one, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TABLES = ("metrics", "probes", "truncations")
RECORDED = ("status", "steps_done", "diverged_step", "stuck_step", "config", "sources", "gamma")
"""What the record of a cell must have in common."""
LEFTOVERS = ("*.partial", "*.arrows", "checkpoints", "sweep-*")
"""What only a live process needs."""


def differences(study: Path, undisturbed: Path) -> list[str]:
    """A line for each difference; empty if the studies have the same results."""
    wanted, found = _cells(undisturbed), _cells(study)
    lines = [f"cells: {sorted(found)} instead of {sorted(wanted)}"] if wanted != found else []
    if (study / "aside").exists():  # a finished cell was trained again
        lines.append(f"results were moved aside: {sorted(p.name for p in study.glob('aside/*'))}")
    for kind in LEFTOVERS:
        lines += [f"left over: {path.relative_to(study)}" for path in study.rglob(kind)]
    for cell in sorted(wanted & found):
        mine, theirs = (_results(place / "cells" / cell) for place in (study, undisturbed))
        names = sorted({*mine, *theirs})
        lines += [f"{cell}: {name}" for name in names if mine.get(name) != theirs.get(name)]
    return lines


def _cells(study: Path) -> set[str]:
    return {path.name for path in study.glob("cells/*")}


def _results(cell: Path) -> dict[str, Any]:
    """What must be the same, by name."""
    try:
        record = json.loads((cell / "record.json").read_text())
        found = {key: record.get(key) for key in RECORDED}
        for group in ("pack", "checkpoint"):  # they may differ between commands for the same cells
            found["config"].pop(group)
        paths = {name: cell / f"{name}.parquet" for name in TABLES}
        found |= {name: _bits(path) for name, path in paths.items() if path.exists()}
        return found | {path.name: path.read_bytes() for path in cell.glob("adapter/*")}
    except (OSError, ValueError, pa.ArrowException) as error:
        return {f"can't be read: {error}": None}


def _bits(path: Path) -> bytes:
    """The values of a table without its times. NaN equals NaN, and 0 is not -0."""
    table = pq.read_table(path)
    sink = pa.BufferOutputStream()
    pq.write_table(table.select([n for n in table.schema.names if n != "seconds"]), sink)
    return sink.getvalue().to_pybytes()
