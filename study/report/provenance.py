"""The records of a study, and the section on what was run: model, data, device, versions, times."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from study.report.text import bullets, distinct, setting
from study.store import StudyTables, cell_folders, damage, read_cell

Record = Mapping[str, Any]
"""The ``record.json`` of a cell."""
UNREADABLE = "unreadable"
"""The status of a cell whose record or tables are damaged."""
HASH_DIGITS = 12
"""How much of a hash is printed."""


def records_of(study_dir: Path, tables: StudyTables) -> list[dict[str, Any]]:
    """The record of every cell. One that is not in ``tables`` is ``unreadable``, with the reason in
    ``error``.
    """
    used = set(tables.cells["cell_id"].astype(str))
    found = []
    for folder in cell_folders(study_dir):
        record = read_cell(folder)
        if record is None:
            continue
        if record["status"] != "unreadable" and folder.name not in used:
            record |= {"status": "unreadable", "error": damage(folder, record) or "left out"}
        found.append(record)
    return found


SETTINGS = (
    *("targets", "init", "lr", "alpha", "batch_size", "accumulation"),
    *("sequence_length", "schedule", "clip"),
)
"""The columns of ``cells`` that the section lists."""


def provenance_section(tables: StudyTables, records: Sequence[Record]) -> str:
    """Everything that identifies the runs, as a list."""
    cells = tables.cells
    found = [record for record in records if record.get("status") != UNREADABLE]
    lines = [
        *_models(found),
        f"data: {distinct(map(_data, found))}",
        *(
            f"{key.replace('_', ' ')}: {distinct(map(setting, cells[key]))}"
            for key in SETTINGS
            if key in cells
        ),
        f"device: {distinct(map(_device, found))}",
        *([f"precision: {distinct(cells['precision'])}"] if "precision" in cells else []),
        f"versions: {_versions(found)}",
        f"commit: {distinct(_commit(record.get('git')) for record in found)}",
    ]
    seconds = total_seconds(cells, found)
    if seconds > 0:
        lines.append(f"total time of the cells: {seconds / 60:.1f} minutes")
    started, finished = _times(found, "started"), _times(found, "finished")
    lines.append(f"from {min(started)} to {max(finished)}")
    if len(found) < len(records):
        lines.append(f"left out because they can't be read: {len(records) - len(found)} cells")
    return "## What was run\n\n" + bullets(lines)


def total_seconds(cells: pd.DataFrame, records: Sequence[Record]) -> float:
    """The time of all cells. Those of a fold were trained at the same time, so they count once."""
    if "seconds" not in cells:
        return 0.0
    ids = cells["cell_id"].astype(str)
    fold_of = {str(record.get("cell_id")): record.get("fold") for record in records}
    folds = ids.map(fold_of).fillna(ids)
    return float(cells["seconds"].astype(float).groupby(folds.to_numpy()).max().sum())


def _models(records: Sequence[Record]) -> Iterable[str]:
    for model in dict.fromkeys(record.get("model") for record in records):
        of_model = [record for record in records if record.get("model") == model]
        notes = distinct(map(_model_note, of_model))
        yield f"model: {model} ({notes}; {distinct(_hash(r, 'model') for r in of_model)})"


def _model_note(record: Record) -> str:
    if "trained_by" in record:
        return f"trained by the {record['trained_by']}"
    return record.get("model_note") or "as published"


def _data(record: Record) -> str:
    return f"{record.get('data')} ({_hash(record, 'data')})"


def _hash(record: Record, source: str) -> str:
    """The first digits of a source's hash. A Trainer hands over no files that could be hashed."""
    if "trained_by" in record:
        return "content not hashed"
    return "sha256 " + str(record.get("sources", {}).get(source, "unknown"))[:HASH_DIGITS]


def _device(record: Record) -> str:
    return f"{record.get('device_name')} ({record.get('device')})"


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "unknown (not run from a git clone)"
    return str(git["commit"])[:HASH_DIGITS] + (
        " with uncommitted changes" if git.get("dirty") else ""
    )


def _versions(records: Sequence[Record]) -> str:
    packages = dict.fromkeys(name for record in records for name in record.get("versions", {}))
    found = [
        (name, [r["versions"][name] for r in records if name in r.get("versions", {})])
        for name in packages
    ]
    return "; ".join(f"{name} {distinct(versions)}" for name, versions in found)


def _times(records: Sequence[Record], which: str) -> list[str]:
    found = [str(record[which])[:16].replace("T", " ") for record in records if record.get(which)]
    return found or ["unknown"]
