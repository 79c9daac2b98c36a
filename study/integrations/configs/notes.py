"""What an import says of the keys of a file, sorted: what changes training comes first."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from study.errors import printable
from study.integrations.configs.fields import Fields

WIDTH = 98
EMPTY: tuple[Any, ...] = (False, "", [], {})
"""Values with which most keys change nothing."""


@dataclass
class Notes:
    """Three lists, the most important first.

    - ``differs``: a line for each setting of the file that is trained differently here;
    - ``defaults``: a line for each value that the file does not set;
    - ``inert``: the keys that don't change what is learned.
    """

    differs: list[str] = field(
        default_factory=list, metadata={"heading": "Trained differently from the file:"}
    )
    defaults: list[str] = field(
        default_factory=list, metadata={"heading": "Not in the file, set by default:"}
    )
    inert: list[str] = field(
        default_factory=list, metadata={"heading": "No effect on training, left out:"}
    )

    def lines(self) -> Iterator[str]:
        """The groups that are not empty, each under its heading. Inert keys share lines."""
        for group in fields(self):
            notes = list(map(printable, getattr(self, group.name)))
            if notes:
                yield group.metadata["heading"]
            if group.name == "inert":
                notes = textwrap.wrap(", ".join(notes), WIDTH, break_on_hyphens=False)
            yield from (f"  {note}" for note in notes)


@dataclass(frozen=True)
class Keys:
    """What is known of the keys that a reader does not take.

    - ``instead``: keys that change training, and what is trained instead;
    - ``inert``: keys that don't;
    - ``plain``: the value with which a key of ``instead`` changes nothing, if it is not an empty
      one.
    """

    instead: Mapping[str, str]
    inert: frozenset[str]
    plain: Mapping[str, Any] = field(default_factory=dict)

    def sort(self, keys: Fields, notes: Notes, prefix: str = "") -> None:
        """Note every key that no reader took. A key that is in neither list may change training."""
        for key, value in keys.untaken().items():
            if key in self.inert or (key in self.instead and self._is_plain(key, value)):
                notes.inert.append(f"{prefix}{short(key)}")
            else:
                why = self.instead.get(key, "an unknown key: it is ignored")
                notes.differs.append(f"{prefix}{short(key)}: {short(value)} ({why})")

    def _is_plain(self, key: str, value: Any) -> bool:
        plain = (self.plain[key],) if key in self.plain else EMPTY
        return any(type(value) is type(choice) and value == choice for choice in plain)


def because(reason: str, keys: str) -> dict[str, str]:
    """``reason`` for each of the space-separated ``keys``."""
    return dict.fromkeys(keys.split(), reason)


def names(words: str) -> frozenset[str]:
    """The space-separated names."""
    return frozenset(words.split())


def short(value: Any) -> str:
    """A value on one line, at most 100 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."
