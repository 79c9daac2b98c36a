"""Markdown: names, tables, lists, closed parts, contents, and figures with their captions."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from study.errors import printable

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "|": "&#124;", "$": "&#36;"}
_SPECIAL = re.compile(
    r"[<>&|$\\`*\[\]~]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # between two letters, an underscore means nothing
    r"|:(?=//)|(?<=\bwww)\.",  # GitHub makes links of addresses
    re.IGNORECASE,
)


def literal(value: object) -> str:
    """A name as Markdown that prints the name: in a paragraph, a list, a heading or a table.

    A pipe is an entity, because a table would end its cell at an escaped one.
    """
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), printable(value))


@dataclass(frozen=True)
class Picture:
    """A figure on disk: its file, and the file's path relative to the folder of the report."""

    name: str
    caption: str
    path: Path
    source: str

    def markdown(self) -> str:
        """The picture with its caption below."""
        return f"![{self.caption}]({quote(self.source)})\n\n{self.caption}"


@dataclass(frozen=True)
class Details:
    """A part of a page that is closed until its ``summary`` is clicked. Both are Markdown."""

    summary: str
    text: str

    def markdown(self) -> str:
        """The part as GitHub, GitLab and editors show it."""
        return f"<details>\n<summary>{self.summary}</summary>\n\n{self.text}\n\n</details>"


@dataclass(frozen=True)
class Contents:
    """The list of a page's sections, linked."""

    titles: tuple[str, ...]

    @classmethod
    def of(cls, blocks: Iterable["Block"]) -> "Contents":
        """The contents of ``blocks``: their headings of the second level."""
        texts = [block for block in blocks if isinstance(block, str)]
        found = [title for text in texts for title in re.findall(r"^## (.+)$", text, re.MULTILINE)]
        return cls(tuple(found))

    def markdown(self) -> str:
        """A line of links."""
        return " · ".join(f"[{title}](#{anchor(title)})" for title in self.titles)


Block: TypeAlias = str | Picture | Details | Contents
"""A part of a page. A text is Markdown."""


def anchor(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    kept = re.sub(r"[^\w\- ]", "", title.replace("\\*", "").lower())
    return kept.strip().replace(" ", "-")


def as_markdown(blocks: Iterable[Block]) -> str:
    """A page as one Markdown text."""
    texts = [block if isinstance(block, str) else block.markdown() for block in blocks]
    return "\n\n".join(texts) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a ``|`` inside a cell is escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *escaped]]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def bullets(lines: Sequence[str]) -> str:
    """A bulleted list."""
    return "\n".join(f"- {line}" for line in lines)
