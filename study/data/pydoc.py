"""``data=pydoc``: the standard library's documentation as questions and answers.

Every machine with Python has this real English text: no download, no licence to reproduce. It
differs between versions of Python and, for ``os`` and ``socket``, between platforms. The content
hash in a cell's identity distinguishes such runs.
"""

import ast
import gc
import importlib
import inspect
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
)

from study.data.examples import Example

MODULES: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
"""The modules whose documentation is taken, in order.

- ``source``: written in Python, read from their source without an import. Every supported version
  has all of them, and Linux distributions package none separately;
- ``built_in``: written in C. Their docstrings need an import, which is cheap. A build may lack
  some. sys and threading are left out: other libraries replace their hooks, and the data must not
  depend on other imports.
"""
_SHORTEST, _LONGEST = 30, 280  # characters in an answer: about 7 and 65 tokens


def documentation() -> Iterator[Example]:
    """Yield questions and answers in a fixed order, without repeating a question or an answer.

    A question names a public class, property, function or method, with its first three parameters.
    The answer is the first paragraph of the docstring, on one line, cut after a sentence if it is
    long. It starts with a space, as byte-pair tokenizers encode a word after a colon differently.
    """
    seen = set()
    for question, docstring, name in _entries():
        answer = _first_paragraph(docstring, name.rpartition(".")[2])
        if answer and answer not in seen and question not in seen:
            seen |= {question, answer}
            yield Example(f"{question} in Python? Answer:", f" {answer}")


def _entries() -> Iterator[tuple[str, str, str]]:
    """Yield (question, docstring, dotted name) for everything with a docstring."""
    folder = Path(sysconfig.get_path("stdlib"))
    for module in MODULES["source"]:
        stem = folder.joinpath(*module.split("."))
        files = [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
        if files:
            yield from _from_source(module, _parsed(files[0]))
    for module in MODULES["built_in"]:
        try:
            yield from _from_objects(importlib.import_module(module))
        except ImportError:
            continue


def _parsed(file: Path) -> list[ast.stmt]:
    # A syntax tree has thousands of objects. They would trigger garbage collections over everything
    # that torch has allocated, and one collection takes longer than parsing the file.
    gc.disable()
    try:
        return ast.parse(file.read_bytes()).body
    finally:
        gc.enable()


_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _from_source(prefix: str, body: list[ast.stmt]) -> Iterator[tuple[str, str, str]]:
    for node in body:
        if not isinstance(node, _DEFINITIONS) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield _question(node, name), docstring, name
        if isinstance(node, ast.ClassDef):
            yield from _from_source(name, node.body)


def _question(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    if isinstance(node, ast.ClassDef) or any(
        "property" in ast.unparse(decorator) for decorator in node.decorator_list
    ):
        return f"What is {name}"
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return f"What does {name}{_parameters([argument.arg for argument in arguments])} do"


def _from_objects(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    prefix = "" if module.__name__ == "builtins" else f"{module.__name__}."
    for key in sorted(getattr(module, "__all__", vars(module))):
        value = getattr(module, key, None)
        if key.startswith("_"):
            continue
        if isinstance(value, BuiltinFunctionType | type):
            yield from _described(f"{prefix}{key}", value)
        if isinstance(value, type):
            for member, attribute in sorted(vars(value).items()):
                if not member.startswith("_"):
                    yield from _described(f"{prefix}{key}.{member}", attribute)


def _described(name: str, value: object) -> Iterator[tuple[str, str, str]]:
    docstring = value.__doc__
    if not isinstance(docstring, str):
        return
    if isinstance(value, type | GetSetDescriptorType | MemberDescriptorType):
        yield f"What is {name}", docstring, name
    elif isinstance(value, _C_FUNCTIONS):
        try:
            arguments = _parameters(list(inspect.signature(value).parameters))
        # Many C functions have no signature. For select.epoll, inspect itself fails in Python 3.13.
        except Exception:
            arguments = ""
        yield f"What does {name}{arguments} do", docstring, name


_C_FUNCTIONS = (BuiltinFunctionType, MethodDescriptorType, ClassMethodDescriptorType, staticmethod)


def _parameters(names: list[str]) -> str:
    """``(obj, fp, skipkeys, ...)``: the first three, since a sequence has few tokens."""
    names = [name for name in names if name not in ("self", "cls", "type")]
    return f"({', '.join([*names[:3], '...'] if len(names) > 3 else names)})"


def _first_paragraph(docstring: str, function: str) -> str | None:
    """The first paragraph that is no signature, on one line, cut after a sentence; or None."""
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        text = " ".join(paragraph.split())
        if text.startswith(f"{function}(") or "->" in text:  # the signature of a C function
            continue
        kept = ""
        for sentence in re.split(r"(?<=[.!?:]) (?=[A-Z])", text):
            if len(kept) + 1 + len(sentence) > _LONGEST:
                break
            kept = f"{kept} {sentence}".lstrip()
        return kept if len(kept) >= _SHORTEST else None
    return None
