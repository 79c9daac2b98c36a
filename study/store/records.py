"""The record of a cell: its configuration, its sources, and how it ended.

It is ``record.json`` in the cell's folder or, in an archived study, a row of ``cells.parquet``. A
folder of results may come from another machine, a later version or a stranger, so a record is
checked before anything uses it: the keys that readers rely on, and that its configuration gives the
id of its cell.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
)

from study.config.hashing import recorded_identities
from study.errors import StudyError, one_line, short
from study.store.files import Damaged, described, read_whole, verified
from study.store.lock import is_claimed
from study.store.rows import SCHEMAS, last_metrics
from study.vocabulary import scaling, statuses

FORMAT = 1
"""The version of the records that this code writes. Records without one are older: they have no
hashes of tables."""
STATUSES = tuple(statuses.STATUSES)
"""The states of a cell, in the order in which counts list them."""

RECORD = "record.json"
ARCHIVE = "cells.parquet"
"""The file of an archived study with its records (:mod:`study.store.archive`)."""
ADAPTER = "adapter"
"""The folder of a cell's trained adapter in PEFT's format, if ``train.save_adapter`` is set."""
CHECKPOINTS = "checkpoints"
"""The folder of a cell's checkpoints while it trains."""

_FIX = "`study train` trains the cell afresh"


# The format.


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Adapter(_Part):
    rank: PositiveFloat
    alpha: FiniteFloat
    scaling: Literal[tuple(scaling.RULES)]  # type: ignore[valid-type]
    exponent: FiniteFloat | None = None
    init: str = ""


class _Optimizer(_Part):
    name: str
    lr: FiniteFloat
    eps: float | None = None
    loraplus_lr_ratio: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None


class _Train(_Part):
    steps: NonNegativeInt
    accumulation: float | None = None
    batch_size: float | None = None
    clip: float | None = None


class _Data(_Part):
    sequence_length: float | None = None


class _Config(_Part):
    adapter: _Adapter
    optimizer: _Optimizer
    train: _Train
    data: _Data
    model: dict[str, Any] = {}
    probes: dict[str, Any] = {}
    seed: NonNegativeInt


class _File(_Part):
    bytes: NonNegativeInt
    sha256: str


def _plain_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError("a part of a path")
    return name


_Name = Annotated[str, AfterValidator(_plain_name)]
_Sources = dict[str, str | None]


class _Record(_Part):
    """The keys of a record that readers rely on. Others are free."""

    format: int = Field(1, ge=1)
    cell_id: str
    study: str
    model: str
    data: str
    status: Literal[(*statuses.RESUMABLE, *statuses.ENDED)]  # type: ignore[valid-type]
    gamma: float
    config: _Config
    started: str = ""
    finished: str = ""
    fold: str = ""
    device: str = ""
    trained_by: str = ""
    error: str | None = None
    device_name: str | None = None
    model_note: str | None = None
    training_note: str | None = None
    steps_done: float | None = None
    diverged_step: float | None = None
    stuck_step: float | None = None
    seconds: float | None = None
    peak_memory_gb: float | None = None
    adapted_share: float = math.nan
    not_adapted: list[str] = []
    sources: _Sources = {}
    versions: _Sources = {}
    git: dict[str, Any] | None = None
    peft: dict[str, Any] = {}
    tables: dict[Literal[tuple(SCHEMAS)], _File] = {}  # type: ignore[valid-type]
    adapter: dict[_Name, _File] = {}


def _parse(content: bytes | str, cell_id: str) -> dict[str, Any]:
    """A record from its JSON text. Raises :class:`Damaged` if this code can't use it."""
    try:
        record = json.loads(content)
        json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8
    except (ValueError, RecursionError) as error:
        raise Damaged(f"record.json is not valid JSON ({one_line(error)}): {_FIX}") from None
    try:
        found = _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        missing = first["type"] == "missing"
        what = f"no {key}" if missing else f"{key or 'content'}={short(first['input'])}"
        raise Damaged(f"record.json has {what}: {_FIX}") from None
    if found.format > FORMAT:
        raise Damaged(
            f"record.json has format {found.format}, and this version of study reads up to "
            f"{FORMAT}: update study"
        )
    if found.cell_id != cell_id:
        raise Damaged(f"copied from the cell {found.cell_id!r}")
    _check_config(record["config"])
    _check_identity(record)
    return dict(record)


def _check_config(config: Mapping[str, Any]) -> None:
    """Two levels of keys, which become columns of tables, with plain values or lists of them."""
    values = [(key, value) for key, value in config.items() if not isinstance(value, dict)]
    for group in config.values():
        values += group.items() if isinstance(group, dict) else ()
    for key, value in values:
        if not _is_plain(value):
            raise Damaged(f"record.json has config.{key}={short(value)}: {_FIX}")
    for key in (*config, *(key for key, _ in values)):
        if not key.isidentifier() or key.startswith("_") or iskeyword(key):
            raise Damaged(f"record.json has config.{short(key)}: {_FIX}")


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(
        part is None or isinstance(part, str | float) or (isinstance(part, int) and part < 1 << 63)
        for part in parts
    )


def _check_identity(record: Mapping[str, Any]) -> None:
    """The id of a cell is a hash of its configuration and its sources. Raises :class:`Damaged`.

    Records that lack the hash of a source are not compared.
    """
    config, sources = record["config"], record.get("sources", {})
    if not all(sources.get(name) is not None for name in ("model", "tokenizer", "data")):
        return
    try:
        found = recorded_identities(config, sources, of_loop="peft" in record)
    except Exception as error:  # a value of any type may stand anywhere
        found = [one_line(error)]
    if record["cell_id"] not in found:
        raise Damaged(f"record.json was changed: its configuration is that of {found[0]}: {_FIX}")
    adapter = config["adapter"]
    gamma = scaling.gamma(*(adapter[key] for key in ("scaling", "alpha", "rank", "exponent")))
    if "peft" not in record and not math.isclose(gamma, record["gamma"], rel_tol=1e-6):
        raise Damaged(
            f"record.json was changed: gamma={record['gamma']:g}, and its adapter has {gamma:g}: "
            f"{_FIX}"
        )


# Reading.


def cell_folders(study_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders of a study's cells, by id. Some may have no record yet, or an unreadable one.

    An archived cell has no folder on disk. Functions of :mod:`study.store` take its path all the
    same.
    """
    cells = Path(study_dir) / "cells"
    names = set(archived_records(Path(study_dir)))
    try:
        with os.scandir(cells) as entries:
            names |= {entry.name for entry in entries if entry.is_dir()}
    except OSError:
        pass
    return [cells / name for name in sorted(names) if not name.startswith(".")]


def record_in(cell_folder: Path) -> dict[str, Any] | None:
    """The record in a cell's folder; None if there is none. See :func:`read_record`."""
    path = cell_folder / RECORD
    if not (path.exists() or path.is_symlink()):
        return None
    try:
        return _parse(read_whole(path), cell_folder.name)
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


def archived_records(study_dir: Path) -> Mapping[str, dict[str, Any]]:
    """The records of an archived study by cell, in the order of its tables; empty without one.

    Raises :class:`StudyError` if the file is damaged.
    """
    path = study_dir / ARCHIVE
    try:
        about = path.stat()
    except OSError:
        return {}
    return _archived(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=8)
def _archived(path: Path, _modified: int, _size: int) -> dict[str, dict[str, Any]]:
    """Asked again when the file has changed."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        rows = table.select(["cell_id", "record"]).to_pydict()
        texts = dict(zip(rows["cell_id"], map(str, rows["record"]), strict=True))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StudyError(
            f"{path} is no archive of a study or is damaged ({one_line(error)}): get it again, for "
            f"example with `git checkout -- {path}`"
        ) from None
    found = {}
    for cell, text in texts.items():
        folder = path.parent / "cells" / str(cell)
        if folder.name != cell:
            continue
        try:
            found[cell] = _parse(text, cell)
        except Damaged as error:
            found[cell] = _unreadable(folder, str(error))
    return found


def read_cell(cell_folder: Path, with_adapter: bool = False) -> dict[str, Any] | None:
    """A cell's record as of now; None if it has none.

    - For a cell that has not ended, ``steps_done`` and ``seconds`` are those of the last row on
      disk, and it is ``running`` or, without a live process, ``interrupted``.
    - A cell that has ended is ``unreadable``, with the reason in ``error``, if a table is missing
      or has another size. The content of tables is compared when they are read. ``with_adapter``:
      also if its adapter is not the one that was saved, which costs reading it.
    """
    record = read_record(cell_folder)
    if record is None or record["status"] == "unreadable" or is_archived(cell_folder):
        return record
    if record["status"] in statuses.ENDED:
        problem = _missing(cell_folder, record)
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


def damage(cell_folder: Path, record: Mapping[str, Any]) -> str | None:
    """The first table of an ended cell that is missing or damaged, in words; None if there is none.

    It compares sizes and hashes. Early records have none: then only the presence of ``metrics`` is
    checked. The pages of an archive have checksums, which are compared when they are read.
    """
    if is_archived(cell_folder):
        return None
    if missing := _missing(cell_folder, record):
        return missing
    try:
        for name, expected in record.get("tables", {}).items():
            verified(cell_folder / f"{name}.parquet", expected)
    except Damaged as error:
        return str(error)
    return None


def adapter_damage(cell_folder: Path, record: Mapping[str, Any]) -> str | None:
    """The first file of an ended cell's adapter that is missing or damaged, in words."""
    for name, expected in record.get("adapter", {}).items():
        path = cell_folder / ADAPTER / name
        try:
            if not path.is_file():
                return f"{ADAPTER}/{name} is missing"
            if described(path) != expected:
                return f"{ADAPTER}/{name} is damaged: its hash is not the one in record.json"
        except OSError as error:
            return f"{ADAPTER}/{name} can't be read: {error.strerror}"
    return None


def load_records(study_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every cell's record as it is on disk, without the unreadable ones."""
    return [record for _, record in _recorded(study_dir) if record["status"] != "unreadable"]


def find_cell(study_dir: str | os.PathLike[str], cell: str) -> tuple[Path, dict[str, Any]]:
    """The folder and record of the cell whose id begins with ``cell``.

    Raises :class:`StudyError` if the folder holds no study, if no cell or several match, and if
    the cell's record is unreadable.
    """
    recorded = _recorded(study_dir)
    if not recorded:
        raise no_study(Path(study_dir))
    found = [(folder, record) for folder, record in recorded if record["status"] != "unreadable"]
    hits = [(folder, record) for folder, record in found if folder.name.startswith(cell)]
    hits = [hit for hit in hits if hit[0].name == cell] or hits
    if len(hits) == 1:
        return hits[0]
    for folder, record in recorded:
        if not hits and cell and folder.name.startswith(cell):
            raise StudyError(
                f"cell {folder.name} of {study_dir} is unreadable ({record['error']}): "
                "repeat the command that trained it, which trains it afresh"
            )
    which, begin = ("no cell", "begins") if not hits else (f"{len(hits)} cells", "begin")
    ids = ", ".join(folder.name for folder, _ in (hits or found)[:8])
    more = ", ..." if len(hits or found) > 8 else ""
    raise StudyError(f"{which} of {study_dir} {begin} with {cell!r}: choose from {ids}{more}")


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


def _missing(cell_folder: Path, record: Mapping[str, Any]) -> str | None:
    """:func:`damage`, by names and sizes only."""
    tables = record.get("tables")
    if tables is None:
        had_rows = record.get("steps_done") is not None
        there = (cell_folder / "metrics.parquet").is_file()
        return "metrics.parquet is missing" if had_rows and not there else None
    for name, expected in tables.items():
        try:
            size = (cell_folder / f"{name}.parquet").stat().st_size
        except OSError:
            return f"{name}.parquet is missing"
        if size != expected["bytes"]:
            return f"{name}.parquet has {size} bytes instead of {expected['bytes']}"
    return None


def _unreadable(cell_folder: Path, reason: str) -> dict[str, Any]:
    return {
        "cell_id": cell_folder.name,
        "study": cell_folder.parents[1].name,
        "status": "unreadable",
        "error": reason,
        "started": "",
        "config": {},
    }


def _recorded(study_dir: str | os.PathLike[str]) -> list[tuple[Path, dict[str, Any]]]:
    return [
        (folder, record)
        for folder in cell_folders(study_dir)
        if (record := read_record(folder)) is not None
    ]


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
    return {"versions": found, "git": _git()}


def _git() -> dict[str, Any] | None:
    source = Path(__file__).parents[1]
    if not (source.parent / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
