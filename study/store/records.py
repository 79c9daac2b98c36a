"""The record of a cell: its configuration, its sources, and how it ended.

It is ``record.json`` in the cell's folder or, in an archived study, a row of ``cells.parquet``. A
folder of results may come from another machine, a later version or a stranger, so a record is
checked before anything uses it: the keys that readers rely on, and that its configuration gives the
id of its cell.
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
)

from study.config.hashing import recorded_identities
from study.errors import StudyError, one_line
from study.store.files import Damaged, described, is_claimed, read_whole
from study.store.rows import SCHEMAS, last_metrics, read_parquet
from study.vocabulary import scaling, statuses

FORMAT = 1
"""The version of the records that this code writes."""
STATUSES = tuple(statuses.STATUSES)
"""The states of a cell, in the order in which counts list them."""

RECORD = "record.json"
ARCHIVE = "cells.parquet"
"""The file of an archived study with its records (:mod:`study.store.archive`)."""
ADAPTER = "adapter"
"""The folder of a cell's trained adapter in PEFT's format, if ``train.save_adapter`` is set."""
CHECKPOINTS = "checkpoints"
"""The folder of a cell's checkpoints while it trains."""


# The format.


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Adapter(_Part):
    rank: PositiveFloat
    alpha: FiniteFloat
    scaling: Literal[tuple(scaling.RULES)]  # type: ignore[valid-type]
    exponent: FiniteFloat | None = None


class _Config(_Part):
    adapter: _Adapter
    optimizer: dict[str, Any]
    train: dict[str, Any]
    data: dict[str, Any]
    seed: NonNegativeInt


class _File(_Part):
    bytes: NonNegativeInt
    sha256: str


class _Record(_Part):
    """The keys of a record that readers rely on. Others are free."""

    format: int = Field(1, ge=1, le=FORMAT)
    cell_id: str
    study: str
    model: str
    data: str
    status: Literal[(*statuses.RESUMABLE, *statuses.ENDED)]  # type: ignore[valid-type]
    gamma: float
    config: _Config
    started: str = ""
    error: str | None = None
    steps_done: float | None = None
    diverged_step: float | None = None
    stuck_step: float | None = None
    sources: dict[str, str | None] = {}
    versions: dict[str, str | None] = {}
    git: dict[str, Any] | None = None
    tables: dict[Literal[tuple(SCHEMAS)], _File] = {}  # type: ignore[valid-type]
    adapter: dict[str, _File] = {}


def _parse(content: bytes | str, folder: Path) -> dict[str, Any]:
    """A record from its JSON text. If this code can't use it, one that is ``unreadable``."""
    try:
        record = json.loads(content)
        _Record.model_validate(record)
        if record["cell_id"] != folder.name:
            raise ValueError(f"copied from the cell {record['cell_id']!r}")
        sources = record.get("sources", {})
        if all(sources.get(name) is not None for name in ("model", "tokenizer", "data")):
            ids = recorded_identities(record["config"], sources, of_loop="peft" in record)
            if folder.name not in ids:
                raise ValueError(f"it was changed: its configuration is that of {ids[0]}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return _unreadable(folder, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    except Exception as error:  # a value of any type may stand anywhere
        return _unreadable(folder, str(error) if type(error) is ValueError else one_line(error))
    return dict(record)


def _unreadable(folder: Path, reason: str) -> dict[str, Any]:
    return {
        "cell_id": folder.name,
        "study": folder.parents[1].name,
        "status": "unreadable",
        "error": f"record.json is damaged or of a later version of study ({reason}): "
        "`study train` trains the cell afresh",
        "started": "",
        "config": {},
    }


# Reading.

T = TypeVar("T")


def read_once(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """``read(path)`` that keeps its results, and reads again when a file has changed."""

    @lru_cache(maxsize=4)
    def kept(path: Path, _state: tuple[int, int]) -> T:
        return read(path)

    def current(path: Path) -> T:
        about = path.stat() if path.exists() else None
        return kept(path, (about.st_mtime_ns, about.st_size) if about else (0, 0))

    return current


@read_once
def _archived(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        table = read_parquet(path).select(["cell_id", "record"]).to_pydict()
    except (Damaged, KeyError) as error:
        raise StudyError(f"{path} is no archive of a study or is damaged ({error})") from None
    texts = zip(table["cell_id"], table["record"], strict=True)
    return {cell: _parse(text, path.parent / "cells" / cell) for cell, text in texts}


def archived_records(study_dir: Path) -> Mapping[str, dict[str, Any]]:
    """The records of an archived study by cell, in the order of its tables; empty without one.

    Raises :class:`StudyError` if the file is damaged.
    """
    return _archived(study_dir / ARCHIVE)


def cell_folders(study_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders of a study's cells, by id. Some may have no record yet, or an unreadable one.

    An archived cell has no folder on disk. Functions of :mod:`study.store` take its path all the
    same.
    """
    cells = Path(study_dir) / "cells"
    names = set(archived_records(Path(study_dir)))
    if cells.is_dir():
        names |= {place.name for place in cells.iterdir() if place.is_dir()}
    return [cells / name for name in sorted(names) if not name.startswith(".")]


def record_in(cell_folder: Path) -> dict[str, Any] | None:
    """The record in a cell's folder; None if there is none. See :func:`read_record`."""
    if not (cell_folder / RECORD).exists():
        return None
    try:
        return _parse(read_whole(cell_folder / RECORD), cell_folder)
    except Damaged as error:
        return _unreadable(cell_folder, str(error))


def read_record(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as it is on disk or in the study's archive; None if there is none.

    If it can't be used, a record with the status ``unreadable``, the reason in ``error``, and empty
    ``config`` and ``started``. The cell's id is the name of its folder, never one from the file.
    """
    record = record_in(cell_folder)
    if record is None:
        record = archived_records(cell_folder.parents[1]).get(cell_folder.name)
    return record


def is_archived(cell_folder: Path) -> bool:
    """Whether a cell is in its study's archive and has no folder of its own."""
    if (cell_folder / RECORD).exists():
        return False
    return cell_folder.name in archived_records(cell_folder.parents[1])


def read_cell(cell_folder: Path, with_adapter: bool = False) -> dict[str, Any] | None:
    """A cell's record as of now; None if it has none.

    - For a cell that has not ended, ``steps_done`` and ``seconds`` are those of the last row on
      disk, and it is ``running`` or, without a live process, ``interrupted``.
    - A cell that has ended is ``unreadable``, with the reason in ``error``, if a table is missing
      or has another size. The content of tables is compared when they are read. ``with_adapter``:
      also if its adapter is not the one that was saved, which costs reading it.
    """
    record = read_record(cell_folder)
    if record is None or record["status"] == "unreadable":
        return record
    if record["status"] in statuses.ENDED:
        problem = damage(cell_folder, record, sizes_only=True)
        if problem is None and with_adapter:
            problem = adapter_damage(cell_folder, record)
        return record | {"status": "unreadable", "error": problem} if problem else record
    last = last_metrics(cell_folder / "metrics.arrows")
    so_far = {} if last is None else {"steps_done": last["step"], "seconds": last["seconds"]}
    status = "running" if is_claimed(cell_folder) else "interrupted"
    return record | so_far | {"status": status}


def is_done(cell_folder: Path, with_adapter: bool = False) -> bool:
    """Whether a cell needs no training: it is complete, or it would end in the same way again.

    It reads the tables: a cell with a missing or damaged one needs training. ``with_adapter``: a
    complete cell without its trained adapter, or with a damaged one, does too.
    """
    record = read_record(cell_folder)
    if record is None or record["status"] not in statuses.DONE:
        return False
    if with_adapter and record["status"] == "complete":
        there = (cell_folder / ADAPTER).is_dir()
        if not there or adapter_damage(cell_folder, record) is not None:
            return False
    return damage(cell_folder, record) is None


def damage(cell_folder: Path, record: Mapping[str, Any], sizes_only: bool = False) -> str | None:
    """The first table of an ended cell that is missing or damaged, in words; None if there is none.

    It compares sizes and hashes. The pages of an archive have checksums, which are compared when
    they are read.
    """
    tables = record.get("tables", {})
    files = {cell_folder / f"{name}.parquet": expected for name, expected in tables.items()}
    return _first_damage(files, sizes_only)


def adapter_damage(cell_folder: Path, record: Mapping[str, Any]) -> str | None:
    """The first file of an ended cell's adapter that is missing or damaged, in words."""
    files = record.get("adapter", {})
    return _first_damage({cell_folder / ADAPTER / name: files[name] for name in files})


def _first_damage(files: Mapping[Path, Mapping[str, Any]], sizes_only: bool = False) -> str | None:
    for path, expected in files.items():
        try:
            if path.stat().st_size != expected["bytes"]:
                return f"{path.name} has {path.stat().st_size} bytes, not {expected['bytes']}"
            if not sizes_only and described(path) != expected:
                return f"{path.name} is damaged: its hash is not the one in record.json"
        except OSError as error:
            return f"{path.name} can't be read: {error.strerror}"
    return None


def load_records(study_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every cell's record as it is on disk, without the unreadable ones."""
    records = map(read_record, cell_folders(study_dir))
    return [record for record in records if record and record["status"] != "unreadable"]


def find_cell(study_dir: str | os.PathLike[str], cell: str) -> tuple[Path, dict[str, Any]]:
    """The folder and record of the cell whose id begins with ``cell``.

    Raises :class:`StudyError` if the folder holds no study, if no cell or several match, and if
    the cell's record is unreadable.
    """
    folders = cell_folders(study_dir)
    if not folders:
        raise no_study(Path(study_dir))
    hits = [folder for folder in folders if folder.name.startswith(cell)]
    hits = [folder for folder in hits if folder.name == cell] or hits
    record = read_record(hits[0]) if len(hits) == 1 else None
    if record is None:
        ids = ", ".join(folder.name for folder in (hits or folders)[:8])
        which = f"{len(hits) or 'no'} cells of {study_dir} begin with {cell!r}"
        raise StudyError(f"{which}: choose one of {ids}{', ...' * (len(hits or folders) > 8)}")
    if record["status"] == "unreadable":
        raise StudyError(f"cell {hits[0].name} of {study_dir} is unreadable: {record['error']}")
    return hits[0], record


def no_study(folder: Path) -> StudyError:
    """The error for a folder without cells. It names the studies nearby."""
    near = {
        cells.parent
        for place in (folder, folder.parent)
        for name in ("cells", ARCHIVE)
        for cells in place.glob(f"*/{name}")
    }
    there = f", or choose from {', '.join(map(str, sorted(near)))}" if near else ""
    return StudyError(f"no study in {folder}: train one with `study train name=...`{there}")


# What made a result.

PACKAGES = (
    *("study", "torch", "transformers", "peft", "accelerate", "trl", "tokenizers", "safetensors"),
    *("bitsandbytes", "numpy", "pandas", "pyarrow", "hydra-core", "omegaconf"),
)


@cache
def provenance() -> dict[str, Any]:
    """``versions`` of Python and of packages; ``git`` with ``commit`` and ``dirty``, or None.

    ``git`` is None outside a clone of this repository.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    root = Path(__file__).parents[2]

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not (root / ".git").exists():
            return {"versions": found, "git": None}
        commit, changed = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "-uno")
        return {"versions": found, "git": {"commit": commit, "dirty": bool(changed)}}
    except (OSError, subprocess.CalledProcessError):
        return {"versions": found, "git": None}
