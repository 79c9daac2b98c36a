"""Which blocks of the documents are as their tables and their code say.

``research/blocks.json`` holds a line for each block: its *key* and the hash of its text. The key is
a hash of the tables that the block reads, and of the code that writes it. A block whose key and
text are those of the record is right, and need not be computed again.
:func:`research.blocks.rewrite` computes all others. A text enters the record only when it has just
been computed, so the record can't make a false number look right.

Comments and docstrings are in no key.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

from research.blocks import RESULTS, ROOT, STUDIES, Block
from research.findings import SECOND_MODEL

FILE = ROOT / "research/blocks.json"
PACKAGES = ("numpy", "pandas", "pyarrow", "scipy")
"""Another version of these may give other numbers."""
DATA = ("results/reference", "results/external", "conf")
"""Where the tables are, and the experiments with their expectations."""
ALL_STUDIES = ROOT / "research/law.py"
"""The module that reads all studies, whichever ones a block names."""
HISTORY = ("order",)
"""Blocks that read the history of git. No key holds it, so they are always computed again."""
SMALL = 400_000
"""The most bytes of tables of a block that is computed in a moment."""


class Record:
    """The keys and the hashes of texts, by the words of a block's first marker.

    ``known``: those of the file. ``seen``: those of the blocks that were found to be right, or that
    were computed, since then.
    """

    def __init__(self, blocks: dict[str, Block]) -> None:
        self.blocks, self.seen = blocks, dict[str, list[str]]()
        self.known = json.loads(FILE.read_text()) if FILE.exists() else {}

    def keeps(self, words: str, text: str) -> bool:
        """Whether ``text`` is what this code wrote for a block, from the tables that are here."""
        entry = self._entry(words, text)
        is_right = words not in HISTORY and self.known.get(words) == entry
        if is_right:
            self.seen[words] = entry
        return is_right

    def add(self, words: str, text: str) -> None:
        """Note a text that was just computed."""
        self.seen[words] = self._entry(words, text)

    def text(self) -> str:
        """The new content of the file: the blocks of ``seen``, a line for each."""
        found = sorted(self.seen.items())
        lines = [f"{json.dumps(words)}: {json.dumps(one)}" for words, one in found]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def _entry(self, words: str, text: str) -> list[str]:
        return [key(words, self.blocks), _hash(text.strip())]


def key(words: str, blocks: dict[str, Block]) -> str:
    """The hash of the tables and the code of a block. ``words``: of its first marker."""
    code = [*map(code_hash, code_of(words, blocks))]
    return _hash(*map(version, PACKAGES), *code, *map(file_hash, tables_of(words, blocks)))


def code_of(words: str, blocks: dict[str, Block]) -> list[Path]:
    """The module of a block's function, and all modules of this repository that it imports."""
    name = blocks[words.split()[0]].__module__
    return imported(ROOT / f"{name.replace('.', '/')}.py")


def tables_of(words: str, blocks: dict[str, Block]) -> list[Path]:
    """The files that a block reads: those of the studies that it names, or all if it names none."""
    files = data_files()
    printed = (path.name for path in RESULTS.iterdir() if path.is_file())
    named = {*re.split(r"[ =]", words)} & {*STUDIES, *printed}
    if named and ALL_STUDIES not in code_of(words, blocks):
        named |= {name.removesuffix(SECOND_MODEL) for name in named}
        files = [path for path in files if named & {path.name, path.stem, path.parent.name}]
    given = (ROOT / word for word in words.split())
    return [*files, *(path for path in given if path.is_file())]


@cache
def data_files() -> list[Path]:
    """Every file below the folders of :data:`DATA`."""
    files = (path for folder in DATA for path in sorted((ROOT / folder).rglob("*")))
    return [path for path in files if path.is_file()]


def is_small(words: str, blocks: dict[str, Block]) -> bool:
    """Whether a block is computed in a moment."""
    return sum(path.stat().st_size for path in tables_of(words, blocks)) < SMALL


@cache
def imported(module: Path) -> list[Path]:
    """A module and all modules of this repository that it imports, directly or through others."""
    found, todo = set[Path](), [module]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += imports_of(one)
    return sorted(found)


@cache
def imports_of(module: Path) -> list[Path]:
    """The modules of this repository that a module imports, with the packages that hold them.

    Imports within functions count, but not those within functions of a package itself: the
    functions of ``study/__init__.py`` import everything, and no block calls them.
    """
    names = []
    for node in _imports(ast.parse(module.read_text()), within=module.name != "__init__.py"):
        if isinstance(node, ast.Import):
            names += [one.name for one in node.names]
        elif node.module:
            names += [f"{node.module}.{one.name}" for one in node.names]
    parts = [name.split(".")[:end] for name in names for end in range(1, name.count(".") + 2)]
    places = [ROOT.joinpath(*part) for part in parts]
    files = [file for at in places for file in (at.with_suffix(".py"), at / "__init__.py")]
    return sorted({file for file in files if file.exists()})


def _imports(tree: ast.AST, within: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif within or not isinstance(node, ast.FunctionDef):
            yield from _imports(node, within)


@cache
def code_hash(module: Path) -> str:
    """The hash of a module without comments and docstrings, and of the data files beside it that it
    names."""
    text = module.read_text()
    named = [path for path in sorted(module.parent.glob("*.[cjy]*")) if path.name in text]
    return _hash(bare(text), *map(file_hash, named))


def bare(text: str) -> str:
    """Code without comments and docstrings, in one format."""
    return ast.unparse(_Bare().visit(ast.parse(text)))


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """A text that stands alone is a docstring."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


@cache
def file_hash(path: Path) -> str:
    """The hash of a file and its name."""
    return _hash(str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest())


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
