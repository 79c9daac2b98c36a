"""The ``cells`` table: one row per cell, with its configuration, its sources and how it ended.

Rows are derived from records, so that a new configuration key is a column without an edit here.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from study.errors import printable
from study.store.records import cell_folders, no_study, read_cell

_log = logging.getLogger(__name__)

NAN = float("nan")

FIRST = (
    *("cell_id", "study", "model", "quant_bits", "data", "optimizer", "lr", "loraplus_lr_ratio"),
    *("momentum", "eps", "rank", "scaling", "exponent", "alpha", "gamma", "init", "targets"),
    *("adapted_share", "dropout", "seed", "data_seed", "sequence_length", "steps"),
    *("batch_size", "accumulation"),
    *("clip", "schedule", "warmup", "weight_decay", "precision", "status", "error"),
    *("diverged_step", "stuck_step", "steps_done", "device", "seconds", "peak_memory_gb"),
)
"""The columns of every ``cells`` table, in order. Those of other keys and of sources follow."""

NOT_COLUMNS = (
    *("name", "results_dir", "plots_dir", "device", "pack", "checkpoint", "tracker"),
    *("model.name", "model.path", "data.name", "data.path"),  # see the columns model and data
    *("data.format", "data.chat_template", "data.split", "data.subset"),  # see data_sha256
    *("adapter.contraction", "adapter.path", "train.save_adapter", "train.epochs"),
    *("train.shard", "train.checkpointing"),
    "expects",
)
"""Configuration keys and groups without a column. They are not part of a cell's identity
(:func:`study.config.identity`), or the record has a column for them."""

GROUPS = ("", "adapter", "train", "data", "model", "optimizer", "probes")
"""The groups of keys with columns; "" for keys outside a group.

A column has the name of the key's last word. If an earlier group has that word, and for every key
of ``probes``, it is the whole key: ``optimizer_alpha``, ``probes_steps``."""

RENAMED = {"optimizer.name": "optimizer"}
ABSENT = {"loraplus_lr_ratio": 1.0}
"""Values of keys that early records do not have, if they are not NaN."""

ORDER = ("model", "quant_bits", "data", "optimizer", "lr", "scaling", "exponent", "rank", "seed")
HASH_DIGITS = 12


def load_cells(study_dir: str | os.PathLike[str], with_unreadable: bool = False) -> pd.DataFrame:
    """The ``cells`` table of a study, sorted by :data:`ORDER`.

    Cells with the status ``unreadable`` are left out, and a warning names them. ``with_unreadable``
    keeps them, and cells whose saved adapter is damaged are among them. Raises :class:`StudyError`
    if the folder holds no study.
    """
    found = (read_cell(cell, with_adapter=with_unreadable) for cell in cell_folders(study_dir))
    rows = [cell_row(record) for record in found if record is not None]
    return cells_of(study_dir, rows, with_unreadable)


def cells_of(
    study_dir: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    with_unreadable: bool = False,
) -> pd.DataFrame:
    """:func:`load_cells`, from the rows of all cells (:func:`cell_row`)."""
    if not with_unreadable:
        bad = {row["cell_id"]: row["error"] for row in rows if row["status"] == "unreadable"}
        warn_of_damage(study_dir, bad)
        rows = [row for row in rows if row["cell_id"] not in bad]
    if not rows:
        raise no_study(Path(study_dir))
    return cells_table(rows)


def warn_of_damage(study_dir: str | os.PathLike[str], reasons: Mapping[str, str]) -> None:
    """One warning for the cells that are left out. ``reasons``: by cell id."""
    if reasons:
        cell, reason = next(iter(reasons.items()))
        _log.warning(
            "%d of the cells of %s can't be read and are left out (%s: %s): run `study check %s`",
            *(len(reasons), study_dir, cell, printable(reason), study_dir),
        )


def load_cell(cell_folder: Path) -> dict[str, Any] | None:
    """One row of the ``cells`` table as of now; None if the cell has no record."""
    record = read_cell(cell_folder)
    return None if record is None else cell_row(record)


def cells_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of :func:`load_cell` as the ``cells`` table, sorted by :data:`ORDER`."""
    return pd.DataFrame(rows).sort_values(list(ORDER)).reset_index(drop=True)


def cell_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of the ``cells`` table.

    - Every configuration key that is part of the cell's identity has a column (:data:`GROUPS`);
    - ``data_sha256``, ``model_sha256``, ...: the first digits of the hash of each source;
    - lists are strings; missing is NaN.
    """
    row = dict.fromkeys(FIRST, NAN) | ABSENT | _configured(record["config"])
    row |= {name: _plain(record[name]) for name in FIRST if name in record}
    return row | {"rank": float(row["rank"])} | _hashes(record)


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's columns."""
    row: dict[str, Any] = {}
    for group in GROUPS:
        for key, value in _keys(config, group):
            name = RENAMED.get(key, key.rpartition(".")[2])
            if name in row or group == "probes":  # its words also name columns of other tables
                name = key.replace(".", "_")
            row[name] = _plain(value)
    return row


def _keys(config: Mapping[str, Any], group: str) -> Iterator[tuple[str, Any]]:
    """The dotted keys and the values of one group; of no group if ``group`` is empty."""
    prefix = f"{group}." if group else ""
    for word, value in (config.get(group, {}) if group else config).items():
        key = prefix + word
        if key not in NOT_COLUMNS and not isinstance(value, dict):
            yield key, value


def _hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of a cell's sources.

    A Trainer's record has none: it hashes names and settings, the rank among them, not contents.
    """
    if "peft" in record:
        return {}
    sources = record.get("sources", {})
    return {f"{name}_sha256": sha[:HASH_DIGITS] for name, sha in sources.items() if sha}


def _plain(value: Any) -> Any:
    if value is None:
        return NAN
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
