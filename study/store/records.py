"""The record of a cell: its configuration, its sources, and how it ended.

It is ``record.json`` in the cell's folder or, in an archived study, a row of ``cells.parquet``.
Results may come from another machine, a later version or a stranger. So a record is checked before
use: it must have the keys that readers need and its own hash, and its configuration must give the
id of its cell.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    ValidationError,
    create_model,
)

from study.config.hashing import recorded_identities
from study.config.types import AdapterConfig, CellConfig, DataConfig, OptimizerConfig, TrainConfig
from study.config.values import MISSING, check_folder_name
from study.errors import StudyError, one_line
from study.store.files import Damaged, check_no_link, is_claimed, read
from study.store.rows import read_parquet, read_stream
from study.vocabulary import scaling, statuses

FORMAT = 1
"""The version of the records that this code writes."""

RECORD = "record.json"
"""The file of a cell with its record."""
ARCHIVE = "cells.parquet"
"""The file of an archived study with its records (:mod:`study.store.archive`)."""
ADAPTER = "adapter"
"""The folder of a cell's trained adapter in PEFT's format, if ``train.save_adapter`` is set."""
CHECKPOINTS = "checkpoints"
"""The folder of a cell's checkpoints while it trains."""
CONFIG = "config.yaml"
"""The file of a cell with its configuration, paths included."""
SHA256 = "sha256"
"""The key of a record with the hash of all others."""


# The format.


Plain = str | bool | int | float | None
"""A value of JSON without parts."""
Value = Plain | list[Plain]
"""A value of a configuration."""


class _Part(BaseModel):
    """Keys with their types. Other keys are free, and have plain values."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, Value]


def _recorded(kind: type[Any]) -> type[_Part]:
    """The keys of a part of the configuration with their types. A record may lack each, and what is
    not known of a recorded loop is null or :data:`MISSING`."""

    def type_of(hint: Any) -> Any:
        if isinstance(hint, type) and is_dataclass(hint):
            return _recorded(hint)
        return Value if hint is Any else hint | Literal[MISSING] | None

    keys: Any = {name: (type_of(hint), None) for name, hint in get_type_hints(kind).items()}
    return create_model(kind.__name__, __base__=_Part, **keys)


def _known(rule: str) -> str:
    if rule not in scaling.RULES:
        raise ValueError(f"no rule {rule!r} here: give its plug-in with study --plugin")
    return rule


class _Adapter(_recorded(AdapterConfig)):  # type: ignore[misc]
    rank: PositiveFloat
    alpha: float
    scaling: Annotated[str, AfterValidator(_known)]


class _Optimizer(_recorded(OptimizerConfig)):  # type: ignore[misc]
    name: str
    lr: FiniteFloat


class _Train(_recorded(TrainConfig)):  # type: ignore[misc]
    steps: int


class _Config(_recorded(CellConfig)):  # type: ignore[misc]
    adapter: _Adapter
    optimizer: _Optimizer
    train: _Train
    data: _recorded(DataConfig)  # type: ignore[valid-type]
    expects: list[dict[str, Any]] | None = None


class _File(_Part):
    bytes: int
    sha256: str


class _Git(_Part):
    commit: str
    dirty: bool


class _Record(BaseModel):
    """The keys of a record that readers rely on. Others are free."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: int = Field(1, ge=1, le=FORMAT)
    cell_id: str
    study: str
    model: str
    data: str
    status: Literal[(*statuses.RESUMABLE, *statuses.ENDED)]  # type: ignore[valid-type]
    config: _Config
    error: str | None = None
    steps_done: float | None = None
    diverged_step: float | None = None
    stuck_step: float | None = None
    sources: dict[str, str | None] = {}
    tables: dict[str, _File] = {}
    adapter: dict[str, _File] = {}
    files: dict[str, _File] = {}
    streams: dict[str, int] = {}
    device: str | None = None
    device_name: str | None = None
    fold: str | None = None
    model_note: str | None = None
    started: str = ""
    finished: str | None = None
    trained_by: str | None = None
    training_note: str | None = None
    seconds: float | None = None
    peak_memory_gb: float | None = None
    adapted_share: float | None = None
    share_of_rule: float | None = None
    parameters: int | None = None
    threads: int | None = None
    not_adapted: list[str] = []
    versions: dict[str, str] = {}
    git: _Git | None = None
    rows: dict[str, Plain] | None = None
    peft: dict[str, Any] | None = None
    expects: list[dict[str, Any]] = []
    resumed: list[dict[str, Plain]] = []


def record_hash(record: Mapping[str, Any]) -> str:
    """The sha256 of all keys of a record but :data:`SHA256`."""
    kept = {key: value for key, value in record.items() if key != SHA256}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


_PATHS = (
    *("path", "dir", "results_dir", "plots_dir", "chat_template"),
    "base_model_name_or_path",
)
"""Keys of configurations whose values may be paths of this machine."""


def without_folders(record: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` with the last part of each path that leads out of the working folder. A record
    may be given to others, and hashes say which files were read. ``config.yaml`` has the paths."""
    names: dict[str, str] = {}

    def named(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {inner: named(part, inner) for inner, part in value.items()}
        if isinstance(value, list | tuple):
            return [named(part, key) for part in value]
        if key in _PATHS and isinstance(value, str) and value.startswith(("/", "~", "..")):
            names[value] = Path(value).name
            return names[value]
        return value

    found = {key: named(value, key) for key, value in record.items()}
    for path in sorted(names, key=len, reverse=True):  # one may begin with another
        for key in ("data", "model", "error"):
            if isinstance(found.get(key), str):
                found[key] = found[key].replace(path, names[path])
    return found


def _parse(folder: Path, text: str | None = None) -> dict[str, Any]:
    """A cell's record from its JSON ``text`` or its file; one that is ``unreadable`` if it must. Of
    a file, the study is that of its folder, which may have been renamed or copied."""
    try:
        record = json.loads(read(folder / RECORD) if text is None else text)
        _Record.model_validate(record)
        if record["cell_id"] != folder.name:
            raise ValueError(f"copied from the cell {record['cell_id']!r}")
        if "files" in record and SHA256 not in record:  # the first with the one had the other
            raise ValueError("it was changed: it has no hash")
        if record.get(SHA256, record_hash(record)) != record_hash(record):
            raise ValueError("it was changed: its hash is another")
        sources = record.get("sources", {})
        if all(sources.get(name) is not None for name in ("model", "tokenizer", "data")):
            ids = recorded_identities(record["config"], sources, of_loop="peft" in record)
            if folder.name not in ids:
                raise ValueError(f"it was changed: its configuration is that of {ids[0]}")
        adapter, p = record["config"]["adapter"], record["config"]["adapter"].get("exponent")
        c = math.nan if (given := adapter.get("crossover")) is None else given
        gamma = scaling.gamma(adapter["scaling"], adapter["alpha"], adapter["rank"], p, c)
        renamed = {"study": folder.parents[1].name} if text is None else {}
        return {**without_folders(record), **renamed, "gamma": gamma}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except Exception as error:  # values may have any type
        reason = one_line(error)
    return _unreadable(folder, f"is damaged or of a later version of study ({reason})")


def _unreadable(folder: Path, reason: str) -> dict[str, Any]:
    return {
        "cell_id": folder.name,
        "study": folder.parents[1].name,
        "status": "unreadable",
        "error": f"{RECORD} {reason}: `study train` trains the cell again",
        "started": "",
        "config": {},
    }


# Reading.

T = TypeVar("T")


def read_once(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """``read(path)`` that keeps its results, and reads again when a file has changed."""
    kept = lru_cache(maxsize=4)(lambda path, state: read(path))

    def current(path: Path) -> T:
        about = path.stat() if path.exists() else None
        return kept(path, about and (about.st_mtime_ns, about.st_size))

    return current


class Archive(NamedTuple):
    """The ``records`` of an archived study by cell, and the ``bytes``, ``sha256`` and ``rows`` of
    its other ``tables`` by name.
    """

    records: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, Any]]


ABOUT = b"study"
"""The key of the metadata of ``cells.parquet`` with the ``bytes``, ``sha256`` and ``rows`` of every
table. Its own ``sha256`` is that of the file with :data:`BLANK` in its place."""
BLANK = "0" * 64
"""What stands for the hash of ``cells.parquet`` while it is computed."""


def archive_of(study_dir: Path) -> Archive:
    """The archive in a study's folder; empty without one. Compares its files with their hashes."""
    return _read_archive(study_dir / ARCHIVE)


@read_once
def _read_archive(path: Path) -> Archive:
    if not path.exists():
        return Archive({}, {})
    try:
        content = read(path)
        about = json.loads(pq.read_metadata(pa.BufferReader(content)).metadata[ABOUT])
        own = about.pop("cells")[SHA256]
        blank = content.replace(own.encode(), BLANK.encode())
        if hashlib.sha256(blank).hexdigest() != own:
            raise Damaged(f"{path.name} is damaged: its hash has changed")
        for name, expected in about.items():
            read(archived_file(path.parent, name, expected), expected)
        table = read_parquet(path).select(["cell_id", "record"]).to_pydict()
        for cell in table["cell_id"]:
            check_folder_name(cell, "cell_id")
        texts = zip(table["cell_id"], table["record"], strict=True)
        folder = path.parent / "cells"
        return Archive({cell: _parse(folder / cell, text) for cell, text in texts}, about)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        if isinstance(error, KeyError) and ABOUT in error.args:
            which = "is no archive of a study, or one of an earlier version, which has no hashes"
            raise Damaged(f"{path.parent} {which}: archive its study again") from None
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        told = f"{path.parent} is no archive of a study, or is damaged ({why}): get it again"
        raise Damaged(told) from None


def new_file(study_dir: Path, name: str, about: Mapping[str, Any]) -> Path:
    """The file of an archived table until the archive is whole: its name has a part of its hash."""
    return study_dir / f"{name}.{about[SHA256][:12]}.parquet"


def archived_file(study_dir: Path, name: str, about: Mapping[str, Any] | None) -> Path:
    """The file of a study's table, which a killed ``study archive`` may not have renamed."""
    new = new_file(study_dir, name, about) if about else None
    return new if new and new.exists() else study_dir / f"{name}.parquet"


def cell_folders(study_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders of a study's cells, by id; of archived cells, the paths that they would have."""
    cells = Path(study_dir) / "cells"
    names = set(archive_of(Path(study_dir)).records)
    check_no_link(cells)
    if cells.is_dir():
        names |= {place.name for place in cells.iterdir() if place.is_dir()}
    folders = [cells / name for name in sorted(names) if not name.startswith(".")]
    check_no_link(*folders)
    return folders


def read_record(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record on disk or in the archive, or None. If it can't be used, its status is
    ``unreadable`` and ``error`` says why."""
    if (cell_folder / RECORD).exists():
        return _parse(cell_folder)
    return archive_of(cell_folder.parents[1]).records.get(cell_folder.name)


def is_archived(cell_folder: Path) -> bool:
    """Whether a cell is in its study's archive and has no folder."""
    in_archive = archive_of(cell_folder.parents[1]).records
    return cell_folder.name in in_archive and not (cell_folder / RECORD).exists()


def read_cell(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as of now; None if it has none, and neither has it tables.

    - For a cell that has not ended, ``steps_done`` and ``seconds`` are those of the last row on
      disk, and it is ``running`` or, without a live process, ``interrupted``.
    - A cell that has ended is ``unreadable`` if a table is missing or has another size. The content
      of tables is compared when they are read.
    """
    record = read_record(cell_folder)
    if record is None and [*cell_folder.glob("*.parquet"), *cell_folder.glob("*.arrows")]:
        return None if is_claimed(cell_folder) else _unreadable(cell_folder, "is missing")
    if record is None or record["status"] == "unreadable":
        return record
    if record["status"] in statuses.ENDED:
        problem = damage(cell_folder, record, sizes_only=True)
        return record | {"status": "unreadable", "error": problem} if problem else record
    rows = read_stream(cell_folder / "metrics.arrows")
    last = rows.slice(max(0, len(rows) - 1)).to_pylist()
    so_far = {"steps_done": last[0]["step"], "seconds": last[0]["seconds"]} if last else {}
    status = "running" if is_claimed(cell_folder) else "interrupted"
    return record | so_far | {"status": status}


def is_done(cell_folder: Path, with_adapter: bool = False) -> bool:
    """Whether a cell needs no training: it would end in the same way again, and its tables
    (``with_adapter``: and adapter) are whole."""
    record = read_record(cell_folder)
    if record is None or record["status"] not in statuses.DONE:
        return False
    is_checked = with_adapter and record["status"] == "complete"
    if is_checked and not (cell_folder / ADAPTER).is_dir():
        return False
    return not damage(cell_folder, record, *(("adapter", "tables") if is_checked else ()))


PLACES = {"tables": "{}.parquet", "adapter": f"{ADAPTER}/{{}}", "files": "{}"}
"""The keys of a record that hold the ``bytes`` and ``sha256`` of files of the cell, by name, with
the path of such a file."""


def damage(
    cell_folder: Path, record: Mapping[str, Any], *parts: str, sizes_only: bool = False
) -> str | None:
    """Which file of an ended cell is missing or damaged, in words, or None. ``parts``: of
    :data:`PLACES`, by default the tables."""
    for part in parts or ("tables",):
        for name, expected in record.get(part, {}).items():
            path = cell_folder / PLACES[part].format(name)
            try:
                if not (sizes_only and path.is_file() and path.stat().st_size == expected["bytes"]):
                    read(path, expected)
            except Damaged as error:
                return str(error)
    return None


def load_records(study_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a study by the ids of their cells, without those that can't be used."""
    records = map(read_record, cell_folders(study_dir))
    return [record for record in records if record and record["status"] != "unreadable"]


def find_cell(study_dir: str | os.PathLike[str], cell: str) -> tuple[Path, dict[str, Any]]:
    """The folder and record of the one cell whose id begins with ``cell``."""
    folders = cell_folders(study_dir)
    if not folders:
        raise no_study(Path(study_dir))
    hits = [f for f in folders if f.name == cell] or [f for f in folders if f.name.startswith(cell)]
    record = read_record(hits[0]) if len(hits) == 1 else None
    if record is None:
        ids = ", ".join(folder.name for folder in (hits or folders)[:8])
        more = ", ..." if len(hits or folders) > 8 else ""
        which, verb = (f"{len(hits)} cells", "begin") if hits else ("no cell", "begins")
        raise StudyError(f"{which} of {study_dir} {verb} with {cell!r}: choose from {ids}{more}")
    if record["status"] == "unreadable":
        raise StudyError(f"cell {hits[0].name} of {study_dir} is unreadable: {record['error']}")
    return hits[0], record


def no_study(folder: Path) -> StudyError:
    """The error for a folder without cells. It names the studies nearby."""
    nearby = folder, folder.parent, folder.parent / "results"
    places = [path for place in nearby for path in place.glob("*")]
    studies = {p for p in places if (p / "cells").is_dir() or (p / ARCHIVE).is_file()}
    there = f", or choose from {', '.join(map(str, sorted(studies)))}" if studies else ""
    return StudyError(f"no study in {folder}: train one with `study train name=...`{there}")


# The versions that made a result.

PACKAGES = (
    *("study", "torch", "transformers", "peft", "accelerate", "trl", "tokenizers", "safetensors"),
    *("bitsandbytes", "numpy", "pandas", "pyarrow", "hydra-core", "omegaconf"),
)
"""The packages whose versions a record has."""


def now() -> str:
    """The time in UTC as ISO 8601 writes it, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def provenance() -> dict[str, Any]:
    """``versions`` of Python and of packages; ``git``: the clone's ``commit`` and ``dirty``."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    root, git = Path(__file__).parents[2], None

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            changed = bool(ask("status", "--porcelain", "-uno"))
            git = {"commit": ask("rev-parse", "HEAD"), "dirty": changed}
    return {"versions": found, "git": git}
