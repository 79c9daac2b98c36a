"""The report's section on what was run: model, data, settings, device, versions and times."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from study.report.caveats import Record
from study.report.formatting import distinct, setting
from study.report.markdown import bullets
from study.store import StudyTables

SETTINGS = (
    *("targets", "init", "lr", "alpha", "batch_size", "accumulation"),
    *("sequence_length", "schedule", "clip"),
)
"""The columns of ``cells`` that the section lists."""


def provenance_section(tables: StudyTables, records: Sequence[Record]) -> str:
    """Everything that identifies the runs, as a list."""
    cells = tables.cells
    lines = [
        *_models(records),
        f"data: {distinct(map(_data, records))}",
        *(
            f"{key.replace('_', ' ')}: {distinct(map(setting, cells[key]))}"
            for key in SETTINGS
            if key in cells
        ),
        f"device: {distinct(map(_device, records))}",
        *([f"precision: {distinct(cells['precision'])}"] if "precision" in cells else []),
        f"versions: {_versions(records)}",
        f"commit: {distinct(_commit(record.get('git')) for record in records)}",
    ]
    seconds = cells["seconds"].astype(float).sum() if "seconds" in cells else 0
    if seconds > 0:
        lines.append(f"total time of the cells: {seconds / 60:.1f} minutes")
    started, finished = _times(records, "started"), _times(records, "finished")
    lines.append(f"from {min(started)} to {max(finished)}")
    return "## What was run\n\n" + bullets(lines)


def _models(records: Sequence[Record]) -> Iterable[str]:
    for model in dict.fromkeys(record.get("model") for record in records):
        of_model = [record for record in records if record.get("model") == model]
        notes = distinct(record.get("model_note") or "as published" for record in of_model)
        hashes = distinct(_short_hash(record, "model") for record in of_model)
        yield f"model: {model} ({notes}; sha256 {hashes})"


def _data(record: Record) -> str:
    return f"{record.get('data')} (sha256 {_short_hash(record, 'data')})"


def _short_hash(record: Record, source: str) -> str:
    return str(record.get("sources", {}).get(source, "unknown"))[:12]


def _device(record: Record) -> str:
    return f"{record.get('device_name')} ({record.get('device')})"


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "unknown (not run from a git clone)"
    return str(git["commit"])[:12] + (" with uncommitted changes" if git.get("dirty") else "")


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
