"""The reference of all keys that ``study train --help`` prints.

A key's meaning is its comment in ``conf/``; its choices and limits are those of its bound.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from study.config.keys import choices, limits

_ENTRY = re.compile(r"^(\w+):.*?(?:\s#\s+(.*))?$")
_CONTINUED = re.compile(r"^\s+#\s+(.*)$")
_WIDEST, _COLUMN = 100, 32
"""Of a line; and where the meanings begin."""


def reference(root: DictConfig) -> str:
    """The groups with their options, and each key of the composed configuration ``root``.

    Values are those of ``root``, so that a user sees what a command line sets. No line is wider
    than the terminal or 100 columns.
    """
    composed = OmegaConf.to_container(root, resolve=False)
    assert isinstance(composed, dict)
    runtime = root.hydra.runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    options: dict[str, list[Path]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*/*.yaml"))):
        options.setdefault(file.parent.name, []).append(file)
    lines = ["Groups (group=option), each with its options:", ""]
    for group, files in options.items():
        if len(files) > 1:
            option = str(runtime.choices.get(group) or "null")
            lines += _entry(f"{group}={option}", " | ".join(file.stem for file in files))
    lines += ["", "Keys (key=value):", ""]
    single = {
        str(key): value for key, value in composed.items() if not isinstance(value, dict | list)
    }
    lines += _keys("", single, [folder / "config.yaml" for folder in folders])
    for group, values in ((str(key), value) for key, value in composed.items()):
        if isinstance(values, dict) and group in options:
            option = str(runtime.choices.get(group))
            files = sorted(options[group], key=lambda file: file.stem != option)
            lines += ["", *_heading(group, files[0]), *_keys(f"{group}.", values, files)]
    return "\n".join(lines)


def _heading(group: str, file: Path) -> list[str]:
    """``optimizer=adamw``, with the comment at the head of its file."""
    if file.stem == "default":
        return [group]
    lines = takewhile(lambda line: line.startswith("# "), file.read_text().splitlines())
    about = " ".join(line[2:] for line in lines if not line.startswith("# @"))
    return textwrap.wrap(f"{group}={file.stem}: {about}".rstrip(": "), _width())


def _keys(prefix: str, values: dict[str, object], files: list[Path]) -> Iterator[str]:
    meanings = _meanings(files)
    for name, value in values.items():
        if name != "name" or not prefix:  # the name of an option is chosen with its group
            key = prefix + name
            yield from _entry(f"{key}={_written(value)}", _described(key, meanings.get(name, "")))


def _entry(written: str, text: str) -> list[str]:
    """``written`` on the left and ``text`` on the right, or below if the left is too wide."""
    left = f"  {written}"
    above = [left] if len(left) > _COLUMN - 2 else []
    first = " " * _COLUMN if above else left.ljust(_COLUMN)
    body = textwrap.wrap(
        text,
        _width(),
        initial_indent=first,
        subsequent_indent=" " * _COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*above, *body] or [left]


def _width() -> int:
    return max(_COLUMN + 20, min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST))


def _described(key: str, meaning: str) -> str:
    """The meaning, with the choices and the limits that it does not name itself."""
    words = [word for word in choices(key) if word != "null"]
    if not all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", meaning) for word in words):
        meaning = f"{meaning} [{' | '.join(words)}]"
    if (limit := limits(key)) and not re.search(r"\d", meaning):
        meaning = f"{meaning} ({limit})"
    return meaning.strip()


def _meanings(files: list[Path]) -> dict[str, str]:
    """The comment of each key in some YAML files: of its line, and of the lines below. The first
    file that comments on a key counts.
    """
    found: dict[str, str] = {}
    for file in files:
        name, own = "", dict[str, str]()
        for line in file.read_text().splitlines() if file.is_file() else ():
            if entry := _ENTRY.match(line):
                name = entry[1]
                own[name] = entry[2] or ""
            elif name and (more := _CONTINUED.match(line)):
                own[name] += f" {more[1]}"
        found |= {key: text for key, text in own.items() if text and key not in found}
    return found


def _written(value: object) -> str:
    """A value as an override has it."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    )
