"""``python -m docs.sentences``: the 40 longest sentences of README, pages and messages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from docs.blocks import BLOCK, ROOT
from docs.make import documents

SKIPPED = re.compile(
    r"```[\s\S]*?```|<!--[\s\S]*?-->|^\|.*$|^#.*$|!?\[|\]\([^)]*\)|\]|\*\*|`", re.MULTILINE
)
END = re.compile(r"(?<=[\w)%*$][.!?:])\s+|\n\s*\n|\n- ")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a Markdown text, without code, tables, headings and numbers of tables."""
    for one in END.split(SKIPPED.sub("", BLOCK.sub("0", text))):
        yield " ".join(one.split())


def messages(path: Path) -> Iterator[str]:
    """The sentences of the errors that a module raises. A value in a message counts as a word."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    for call in calls:
        if ast.unparse(call.func) == "StudyError" and call.args:
            text = ast.unparse(call.args[0]).strip("f'\"")
            yield from sentences(re.sub(r"{[^}]*}", "x", text))


if __name__ == "__main__":
    found = [
        (len(one.split()), path, one) for path in documents() for one in sentences(path.read_text())
    ]
    modules = sorted((ROOT / "study").rglob("*.py"))
    found += [(len(one.split()), path, one) for path in modules for one in messages(path)]
    print("| words | where | sentence |\n|---|---|---|")
    for words, path, one in sorted(found, key=lambda row: -row[0])[:40]:
        print(f"| {words} | {path.relative_to(ROOT)} | {one} |")
