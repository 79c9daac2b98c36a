"""An imported experiment: settings of ``study train``, and notes on what has no counterpart."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from study.errors import printable

_FILE = yaml.safe_load(Path(__file__).with_name("changes.yaml").read_text())
CHANGES = {key: instead for instead, keys in _FILE["instead"].items() for key in keys.split()}
"""What is trained instead, by key."""


@dataclass
class Experiment:
    """A configuration of another tool, translated: the option of each group, values and lists to
    sweep by dotted key, and notes under the headings of :meth:`lines`."""

    origin: str
    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {**self.groups, **self.values}

    def note(self, key: str, value: Any, instead: str, *, detail: bool = False) -> None:
        """Note that a setting of the file is trained differently, and how."""
        notes = self.details if detail else self.differs
        notes.append(f"{key}: {shown(value)} ({instead})")

    def lines(self) -> Iterator[str]:
        """The notes, each list under its heading. Ignored keys share lines."""
        ignored = textwrap.wrap(", ".join(map(printable, self.ignored)), 98, break_on_hyphens=False)
        for heading, notes in (
            ("Trained differently from the file:", self.differs),
            ("Different in detail:", self.details),
            ("To give when you train:", self.missing),
            ("Not in the file, set by default:", self.defaults),
            ("Ignored:", ignored),
        ):
            if notes:
                yield heading
                yield from (f"  {printable(note)}" for note in notes)

    def note_rest(self, keys: Mapping[str, Any], prefix: str = "") -> None:
        """Note every key that no reader took."""
        for key, value in keys.items():
            name, last = f"{prefix}{shown(key)}", str(key).rpartition(".")[2]
            usual = _FILE["unchanged"].get(last)
            if last not in CHANGES or value == usual or not (value or usual is True):
                self.ignored.append(name)
            else:
                self.note(name, value, CHANGES[last], detail=last in _FILE["details"])


def shown(value: Any) -> str:
    """A value on one line, at most 100 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."
