"""The format of ``record.json``: its version, the keys that readers rely on, and their types.

A folder of results may come from another machine, a later version or a stranger, so a record is
checked before anything uses it.
"""

import json
import math
from collections.abc import Callable, Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Any

from study.errors import StudyError, short
from study.reading import read_object
from study.store.schemas import SCHEMAS
from study.store.streams import Damaged
from study.vocabulary.scaling import RULES
from study.vocabulary.statuses import ENDED, RESUMABLE

FORMAT = 1
"""The version of the records that this code writes. Records without one are older: they have no
hashes of tables and streams."""

LARGEST = 4 << 20
"""Bytes of a record. They have a few thousand."""

_FIX = "`study train` trains the cell afresh"

_ABSENT = object()

Check = Callable[[Any], bool]


def parse(path: Path) -> dict[str, Any] | None:
    """The record in a file; None if there is no file.

    Raises :class:`~study.store.streams.Damaged` if it is not a whole record that this code can
    read.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Damaged(f"record.json can't be read ({error.strerror}): {_FIX}") from None
    try:
        record = read_object(path, path.name, _FIX, LARGEST)
    except StudyError as error:
        raise Damaged(str(error)) from None
    _check_format(record)
    _check_keys(record)
    return record


def _check_format(record: Mapping[str, Any]) -> None:
    found = record.get("format", FORMAT)
    if not _is_count(found) or found < 1:
        raise Damaged(f"record.json has format={short(found)}: {_FIX}")
    if found > FORMAT:
        raise Damaged(
            f"record.json has format {found}, and this version of study reads up to {FORMAT}: "
            "update study"
        )


def _check_keys(record: Mapping[str, Any]) -> None:
    for keys, required in ((_REQUIRED, True), (_OPTIONAL, False)):
        for key, check in keys.items():
            value = _value(record, key)
            if value is _ABSENT and not required:
                continue
            if value is _ABSENT or not check(value):
                what = f"no {key}" if value is _ABSENT else f"{key}={short(value)}"
                raise Damaged(f"record.json has {what}: {_FIX}")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which can be neither printed nor stored
        raise Damaged(f"record.json has text that is not Unicode: {_FIX}") from None


def _value(record: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, or :data:`_ABSENT`."""
    value: Any = record
    for word in key.split("."):
        value = value.get(word, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    """A number that fits a float. It may be infinite or NaN, as measured values are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 1 << 63


def _is_none_or_number(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_none_or_text(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_none_or_mapping(value: Any) -> bool:
    return value is None or _is_mapping(value)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    """A positive number; infinite for the limit of infinite rank."""
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _is_status(value: Any) -> bool:
    return value in (*RESUMABLE, *ENDED)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_mapping_of_text(value: Any) -> bool:
    """Hashes and versions by name; None for a source that a cell lacks."""
    return isinstance(value, dict) and all(v is None or _is_text(v) for v in value.values())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_tables(value: Any) -> bool:
    return _are_files(value) and all(name in SCHEMAS for name in value)


def _are_files(value: Any) -> bool:
    """The size and hash of files by name. A name becomes a part of a path."""
    return isinstance(value, dict) and all(
        Path(name).name == name not in ("", "..")
        and isinstance(about, dict)
        and _is_count(about.get("bytes"))
        and _is_text(about.get("sha256"))
        for name, about in value.items()
    )


def _is_config(value: Any) -> bool:
    """Two levels of keys, whose values are plain or lists of plain values."""
    return isinstance(value, dict) and all(
        _is_key(key) and (_is_plain(group) or _is_group(group)) for key, group in value.items()
    )


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_key(key) and _is_plain(inner) for key, inner in value.items()
    )


def _is_key(value: str) -> bool:
    """A name of Python: keys become columns of tables and fields of their rows."""
    return value.isidentifier() and not value.startswith("_") and not iskeyword(value)


def _is_adapter(value: Any) -> bool:
    """Its scaling is a rule that this version has, with an exponent if the rule has none."""
    rule = RULES.get(value["scaling"])
    return rule is not None and (rule.p is not None or _is_finite(value.get("exponent")))


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(part is None or isinstance(part, bool | str) or _is_number(part) for part in parts)


_REQUIRED: dict[str, Check] = {
    **dict.fromkeys(("cell_id", "study", "model", "data"), _is_text),
    "status": _is_status,
    "gamma": _is_number,
    "config": _is_mapping,
    "config.adapter.rank": _is_rank,
    "config.adapter.alpha": _is_finite,
    "config.adapter.scaling": _is_text,
    "config.adapter": _is_adapter,
    "config.optimizer.name": _is_text,
    "config.optimizer.lr": _is_finite,
    "config.train.steps": _is_count,
    "config.data": _is_mapping,
    "config.seed": _is_count,
}
_OPTIONAL: dict[str, Check] = {
    **dict.fromkeys(("started", "finished", "fold", "device", "trained_by"), _is_text),
    **dict.fromkeys(("error", "device_name", "model_note", "training_note"), _is_none_or_text),
    **dict.fromkeys(("steps_done", "diverged_step", "stuck_step"), _is_none_or_number),
    **dict.fromkeys(("seconds", "peak_memory_gb", "config.adapter.exponent"), _is_none_or_number),
    **dict.fromkeys(
        (
            "config.data.sequence_length",
            "config.optimizer.eps",
            "config.optimizer.loraplus_lr_ratio",
            "config.optimizer.momentum",
            "config.optimizer.weight_decay",
            "config.train.accumulation",
            "config.train.batch_size",
            "config.train.clip",
        ),
        _is_none_or_number,
    ),
    "config.adapter.init": _is_text,
    "adapted_share": _is_number,
    "not_adapted": _are_texts,
    **dict.fromkeys(("sources", "versions"), _is_mapping_of_text),
    "git": _is_none_or_mapping,
    "peft": _is_mapping,
    **dict.fromkeys(("config.model", "config.probes"), _is_mapping),
    **dict.fromkeys(("tables", "streams"), _are_tables),
    "adapter": _are_files,
    "config": _is_config,
}
"""The keys of a record by dotted name, each with the check of its value. Others are free."""
