"""Tables and records whose names are literal Markdown.

A results folder may come from somebody else, and every text in it may hold markup: a model, a path,
a note, an error. The page makes all of them literal before it prints any, so that no section has to
remember to.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from study.config.expectations import Expectation, read_expectation
from study.report.markdown import literal
from study.store import StudyTables

Record = Mapping[str, Any]
"""The ``record.json`` of a cell."""

PRINTED = ("cells", "exponents", "stable", "rates", "losses")
"""The tables with names that the report prints: entries, and names of columns."""
UNREADABLE = "unreadable"
"""The status of a cell whose record or tables are damaged."""
KEY = "cell_id"
"""The column that is compared with other tables and not printed."""

TEXTS = (
    *("cell_id", "fold", "status", "error", "model", "model_note", "data", "device"),
    *("device_name", "trained_by", "training_note", "started", "finished"),
)
"""The fields of a record that the report prints."""
HASH_DIGITS = 12
"""How much of a hash it prints."""


def literal_tables(tables: StudyTables) -> StudyTables:
    """``tables`` with literal names. The words of the vocabulary stay as they are."""
    found: dict[str, Any] = {name: _literal_frame(getattr(tables, name)) for name in PRINTED}
    return replace(tables, **found)


def literal_record(record: Record) -> Record:
    """The fields of a record that the report prints, with literal names.

    One of the wrong type is left out, like one that is missing.
    """
    found: dict[str, Any] = {
        name: literal(record[name]) for name in TEXTS if record.get(name) is not None
    }
    for name, most in (("versions", None), ("sources", HASH_DIGITS)):
        if isinstance(entries := record.get(name), Mapping):
            found[name] = {literal(key): literal(str(v)[:most]) for key, v in entries.items()}
    if isinstance(share := record.get("adapted_share"), int | float):
        found["adapted_share"] = float(share)
    if isinstance(names := record.get("not_adapted"), list):
        found["not_adapted"] = [literal(name) for name in names]
    if isinstance(entries := record.get("expects"), list):
        read = [read_expectation(entry) for entry in entries]
        found["expects"] = [_literal_expectation(one) for one in read if one is not None]
    git = record.get("git")
    if isinstance(git, Mapping) and git.get("commit"):
        commit = literal(str(git["commit"])[:HASH_DIGITS])
        found["git"] = {"commit": commit, "dirty": bool(git.get("dirty"))}
    return found


def _literal_expectation(one: Expectation) -> Expectation:
    texts = {name: getattr(one, name) for name in ("source", "refuted_by", "layer", "kind")}
    found: dict[str, Any] = {name: text and literal(text) for name, text in texts.items()}
    return replace(one, **found)


def _literal_frame(table: pd.DataFrame) -> pd.DataFrame:
    names = {name: literal(name) for name in table.columns}
    texts = {
        name: table[name].map(_literal_text).astype(object)
        for name in table.columns
        if name != KEY and not pd.api.types.is_numeric_dtype(table[name])
    }
    found = table.assign(**texts).rename(columns=names)
    return found.loc[:, ~found.columns.duplicated()]


def _literal_text(value: Any) -> Any:
    return literal(value) if isinstance(value, str) else value
