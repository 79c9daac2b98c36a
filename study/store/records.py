"""The record of a cell: its configuration, its sources, and how it ended.

It is ``record.json`` in the cell's folder or, in an archived study, a row of ``cells.parquet``.
Results may come from another machine, a later version or a stranger. So a record is checked before
use: it must have the keys that readers need, and its configuration must give the id of its cell.
"""

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from study.config.hashing import recorded_identities
from study.errors import StudyError, one_line
from study.store.files import Damaged, is_claimed, read
from study.store.rows import last_metrics, read_parquet
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


def _known(rule: str) -> str:
    if rule not in scaling.RULES:
        raise ValueError(f"no rule {rule!r} here: give its plug-in with study --plugin")
    return rule


class _Adapter(_Part):
    rank: PositiveFloat
    scaling: Annotated[str, AfterValidator(_known)]


class _Config(_Part):
    adapter: _Adapter
    optimizer: dict[str, Any]
    train: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any] = {}
    probes: dict[str, Any] = {}


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
    error: str | None = None
    steps_done: float | None = None
    diverged_step: float | None = None
    stuck_step: float | None = None
    sources: dict[str, str | None] = {}
    tables: dict[str, dict[str, Any]] = {}
    adapter: dict[str, dict[str, Any]] = {}


def _parse(folder: Path, text: str | None = None) -> dict[str, Any]:
    """The record of a cell from its JSON ``text`` or from its file. If this code can't use it, one
    that is ``unreadable``.
    """
    try:
        record = json.loads(read(folder / RECORD) if text is None else text)
        _Record.model_validate(record)
        if record["cell_id"] != folder.name:
            raise ValueError(f"copied from the cell {record['cell_id']!r}")
        sources = record.get("sources", {})
        if all(sources.get(name) is not None for name in ("model", "tokenizer", "data")):
            ids = recorded_identities(record["config"], sources, of_loop="peft" in record)
            if folder.name not in ids:
                raise ValueError(f"it was changed: its configuration is that of {ids[0]}")
        return dict(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except Exception as error:  # values may have any type
        reason = one_line(error)
    return {
        "cell_id": folder.name,
        "study": folder.parents[1].name,
        "status": "unreadable",
        "error": f"record.json is damaged or of a later version of study ({reason}): "
        "`study train` trains the cell again",
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
    """The records of an archived study by cell; empty without one. StudyError if it is damaged."""
    if not path.exists():
        return {}
    try:
        table = read_parquet(path).select(["cell_id", "record"]).to_pydict()
    except (Damaged, KeyError) as error:
        raise StudyError(f"{path} is no archive of a study or is damaged ({error})") from None
    texts = zip(table["cell_id"], table["record"], strict=True)
    return {cell: _parse(path.parent / "cells" / cell, text) for cell, text in texts}


def cell_folders(study_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders of a study's cells, by id. Some may have no record yet, or an unreadable one.

    An archived cell has no folder on disk, but functions of :mod:`study.store` take its path.
    """
    cells = Path(study_dir) / "cells"
    names = set(_archived(Path(study_dir) / ARCHIVE))
    if cells.is_dir():
        names |= {place.name for place in cells.iterdir() if place.is_dir()}
    return [cells / name for name in sorted(names) if not name.startswith(".")]


def read_record(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as it is on disk or in the study's archive; None if there is none.

    If it can't be used, a record with the status ``unreadable``, the reason in ``error``, and empty
    ``config`` and ``started``. The cell's id is the name of its folder, never one from the file.
    """
    if (cell_folder / RECORD).exists():
        return _parse(cell_folder)
    return _archived(cell_folder.parents[1] / ARCHIVE).get(cell_folder.name)


def is_archived(cell_folder: Path) -> bool:
    """Whether a cell is in its study's archive and has no folder."""
    in_archive = _archived(cell_folder.parents[1] / ARCHIVE)
    return cell_folder.name in in_archive and not (cell_folder / RECORD).exists()


def read_cell(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as of now; None if it has none.

    - For a cell that has not ended, ``steps_done`` and ``seconds`` are those of the last row on
      disk, and it is ``running`` or, without a live process, ``interrupted``.
    - A cell that has ended is ``unreadable``, with the reason in ``error``, if a table is missing
      or has another size. The content of tables is compared when they are read.
    """
    record = read_record(cell_folder)
    if record is None or record["status"] == "unreadable":
        return record
    if record["status"] in statuses.ENDED:
        problem = damage(cell_folder, record, sizes_only=True)
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
        if not there or damage(cell_folder, record, of_adapter=True):
            return False
    return not damage(cell_folder, record)


def damage(
    cell_folder: Path,
    record: Mapping[str, Any],
    sizes_only: bool = False,
    of_adapter: bool = False,
) -> str | None:
    """The first table of an ended cell that is missing or damaged, in words; None if there is none.

    It compares sizes and, unless ``sizes_only``, hashes. ``of_adapter``: the first file of its
    adapter instead. Nothing is compared in an archive: its pages have checksums.
    """
    files = {f"{name}.parquet": expected for name, expected in record.get("tables", {}).items()}
    if of_adapter:
        files = {f"{ADAPTER}/{name}": one for name, one in record.get("adapter", {}).items()}
    for name, expected in files.items():
        path = cell_folder / name
        try:
            if not (sizes_only and path.is_file() and path.stat().st_size == expected["bytes"]):
                read(path, expected)
        except Damaged as error:
            return str(error)
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
    places = [*folder.glob("*"), *folder.parent.glob("*")]
    studies = {p for p in places if (p / "cells").is_dir() or (p / ARCHIVE).is_file()}
    there = f", or choose from {', '.join(map(str, sorted(studies)))}" if studies else ""
    return StudyError(f"no study in {folder}: train one with `study train name=...`{there}")


# The versions that made a result.

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
