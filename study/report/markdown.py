"""Markdown: tables, lists and figures with their captions."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A figure on disk. ``source``: its path relative to the folder of the Markdown file."""

    name: str
    caption: str
    source: str

    def markdown(self) -> str:
        """The picture with its caption below."""
        source = f"<{self.source}>" if " " in self.source else self.source
        return f"![{self.caption}]({source})\n\n{self.caption}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a ``|`` inside a cell is escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *escaped]]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def bullets(lines: Sequence[str]) -> str:
    """A bulleted list."""
    return "\n".join(f"- {line}" for line in lines)
