"""The ``cells`` table: one row per cell, with its configuration, its sources and how it ended.

Rows are derived from records, so that a new configuration key is a column without an edit here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

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


def cells_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The ``cells`` table of these records, sorted by :data:`ORDER`."""
    rows = [cell_row(record) for record in records]
    return pd.DataFrame(rows).sort_values(list(ORDER)).reset_index(drop=True)


def cell_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of the ``cells`` table.

    - Every configuration key that is part of the cell's identity has a column (:data:`GROUPS`);
    - ``data_sha256``, ``model_sha256``, ...: the first digits of the hash of each source;
    - lists are strings; missing is NaN.
    """
    row = dict.fromkeys(FIRST, NAN) | ABSENT
    configured: set[str] = set()
    config = record["config"]
    for group in GROUPS:
        for word, value in (config.get(group, {}) if group else config).items():
            key = f"{group}.{word}" if group else word
            if key in NOT_COLUMNS or isinstance(value, dict):
                continue
            name = RENAMED.get(key, word)
            if name in configured or group == "probes":
                name = key.replace(".", "_")  # its words also name columns of other tables
            configured.add(name)
            row[name] = _plain(value)
    row |= {name: _plain(record[name]) for name in FIRST if name in record}
    row["rank"] = float(row["rank"])
    if "peft" not in record:  # a Trainer's record hashes names and settings, not contents
        sources = record.get("sources", {})
        row |= {f"{name}_sha256": sha[:HASH_DIGITS] for name, sha in sources.items() if sha}
    return row


def _plain(value: Any) -> Any:
    if value is None:
        return NAN
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
