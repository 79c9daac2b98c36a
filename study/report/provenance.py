"""The records of a study, and its provenance: model, data, device, versions, times."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis.text import distinct
from study.analysis.wording import setting_text
from study.store import StudyTables, cell_folders, damage, read_cell

Record = Mapping[str, Any]
"""The ``record.json`` of a cell."""
UNREADABLE = "unreadable"
"""The status of a cell whose record or tables are damaged."""
HASH_DIGITS = 12
"""How much of a hash is printed."""


def records_of(study_dir: Path, tables: StudyTables) -> list[dict[str, Any]]:
    """The record of every cell; ``unreadable`` if it is not in ``tables``."""
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


def provenance_lines(tables: StudyTables, records: Sequence[Record]) -> list[str]:
    cells = tables.cells
    found = [record for record in records if record.get("status") != UNREADABLE]
    models = dict.fromkeys(record.get("model") for record in found)
    lines = [_model(model, [r for r in found if r.get("model") == model]) for model in models]
    data = distinct(f"{record.get('data')} ({_hash(record, 'data')})" for record in found)
    lines.append(f"data: {data}")
    for key in SETTINGS:
        lines.append(f"{key.replace('_', ' ')}: {distinct(map(setting_text, cells[key]))}")
    devices = distinct(f"{r.get('device_name')} ({r.get('device')})" for r in found)
    lines.append(f"device: {devices}")
    lines.append(f"precision: {distinct(cells['precision'])}")
    packages = dict.fromkeys(name for record in found for name in record.get("versions", {}))
    versions = [
        f"{name} {distinct(r['versions'][name] for r in found if name in r.get('versions', {}))}"
        for name in packages
    ]
    lines.append(f"versions: {'; '.join(versions)}")
    lines.append(f"commit: {distinct(_commit(record.get('git')) for record in found)}")
    seconds = total_seconds(cells, found)
    if seconds > 0:
        lines.append(f"total time of the cells: {seconds / 60:.1f} minutes")
    started, finished = _times(found, "started"), _times(found, "finished")
    lines.append(f"from {min(started)} to {max(finished)}")
    if len(found) < len(records):
        lines.append(f"left out because they can't be read: {len(records) - len(found)} cells")
    return lines


def total_seconds(cells: pd.DataFrame, records: Sequence[Record]) -> float:
    """The time of all cells. Those of a fold were trained at the same time, so they count once."""
    fold_of = {str(record.get("cell_id")): record.get("fold") for record in records}
    folds = [fold_of.get(one) or one for one in cells["cell_id"].astype(str)]
    return float(cells["seconds"].astype(float).groupby(pd.Index(folds)).max().sum())


def _model(model: Any, records: Sequence[Record]) -> str:
    notes = distinct(
        f"trained by the {record['trained_by']}"
        if "trained_by" in record
        else record.get("model_note") or "as published"
        for record in records
    )
    return f"model: {model} ({notes}; {distinct(_hash(record, 'model') for record in records)})"


def _hash(record: Record, source: str) -> str:
    """The first digits of a source's hash. A Trainer gives no files to hash."""
    if "trained_by" in record:
        return "content not hashed"
    return "sha256 " + str(record.get("sources", {}).get(source, "unknown"))[:HASH_DIGITS]


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "unknown (not run from a git clone)"
    return str(git["commit"])[:HASH_DIGITS] + (
        " with uncommitted changes" if git.get("dirty") else ""
    )


def _times(records: Sequence[Record], which: str) -> list[str]:
    found = [str(record[which])[:16].replace("T", " ") for record in records if record.get(which)]
    return found or ["unknown"]
