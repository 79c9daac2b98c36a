"""``data=pydoc``: the standard library's documentation as questions and answers.

Real English text on every machine with Python: no download, no licence to reproduce. The text is
that of the running Python, so it differs between versions and, for ``os`` and ``socket``, between
platforms. The content hash in a cell's identity tells such runs apart.
"""

import ast
import gc
import hashlib
import importlib
import inspect
import re
import sys
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

# Modules written in Python, read from their source without an import. All are part of every
# supported version. Modules that Linux distributions package separately (tkinter, turtle, venv,
# idlelib) are left out.
SOURCE_MODULES = """
    abc ast asyncio.base_events asyncio.events asyncio.exceptions asyncio.futures asyncio.locks
    asyncio.protocols asyncio.queues asyncio.runners asyncio.selector_events asyncio.streams
    asyncio.subprocess asyncio.tasks asyncio.timeouts asyncio.transports base64 bdb bz2 calendar cmd
    code codecs codeop collections compileall concurrent.futures._base configparser contextlib copy
    csv ctypes curses.textpad dataclasses datetime difflib dis email.charset email.encoders
    email.errors email.feedparser email.generator email.header email.headerregistry email.iterators
    email.message email.mime.base email.parser email.policy email.utils enum filecmp fileinput
    fnmatch fractions ftplib functools genericpath getopt getpass glob graphlib gzip heapq hmac
    html.parser http.client http.cookiejar http.cookies http.server imaplib importlib.abc
    importlib.machinery importlib.metadata importlib.resources.abc importlib.util inspect ipaddress
    json json.encoder keyword linecache locale logging logging.config logging.handlers lzma mailbox
    mimetypes multiprocessing.connection multiprocessing.context multiprocessing.managers
    multiprocessing.pool multiprocessing.process multiprocessing.reduction
    multiprocessing.shared_memory multiprocessing.util netrc ntpath numbers operator optparse os
    pathlib pdb pickle pkgutil platform poplib posixpath pprint pstats pyclbr pydoc queue quopri
    random re reprlib rlcompleter runpy sched secrets selectors shlex shutil site smtplib socket
    socketserver sqlite3.dump ssl stat statistics subprocess symtable sysconfig tabnanny tarfile
    tempfile textwrap threading timeit tokenize tomllib trace traceback tracemalloc types typing
    unittest.case unittest.loader unittest.mock unittest.result unittest.runner unittest.suite
    unittest.util urllib.error urllib.parse urllib.request urllib.response urllib.robotparser uuid
    warnings weakref webbrowser wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.types
    wsgiref.util wsgiref.validate xml.dom.minidom xml.etree.ElementTree xml.sax.handler
    xml.sax.saxutils xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp zipfile zipimport
"""

# Modules written in C, whose docstrings need an import, which is cheap. A build may lack some.
# Without sys and threading: other libraries replace their hooks, and the data must not depend on
# other imports.
BUILT_IN_MODULES = """
    array atexit binascii builtins cmath collections datetime decimal faulthandler functools gc io
    itertools marshal math mmap operator os pickle select signal socket sqlite3 struct time
    unicodedata weakref zlib
"""

_SHORTEST, _LONGEST = 30, 280  # characters in an answer: about 7 and 65 tokens


def documentation() -> Iterator[Example]:
    """Yield questions and answers in a fixed order, without repeating a question or an answer.

    A question names a public class, property, function or method, with its first three parameters.
    The answer is the first paragraph of the docstring, on one line, cut after a sentence if it is
    long. It starts with a space, because byte-pair tokenizers encode a word after a space
    differently from a word after a colon.
    """
    seen = set()
    for question, docstring, name in _entries():
        answer = _first_paragraph(docstring, name.rpartition(".")[2])
        if answer and answer not in seen and question not in seen:
            seen |= {question, answer}
            yield Example(f"{question} in Python? Answer:", f" {answer}")


def state() -> str:
    """A hash of what :func:`documentation` reads: sizes and times of the sources, the build of
    Python, whose modules in C have their docstrings in them, and this module.
    """
    files = {file: file.stat() for file in (*_sources().values(), Path(__file__))}
    seen = [(str(file), found.st_size, found.st_mtime_ns) for file, found in files.items()]
    made_from = repr((sys.version, sys.platform, seen))
    return hashlib.sha256(made_from.encode()).hexdigest()[:24]


def _sources() -> dict[str, Path]:
    """The files of those of :data:`SOURCE_MODULES` that this Python has."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = {}
    for module in SOURCE_MODULES.split():
        stem = folder.joinpath(*module.split("."))
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                found[module] = file
                break
    return found


def _entries() -> Iterator[tuple[str, str, str]]:
    """Yield (question, docstring, dotted name) for everything with a docstring."""
    for module, file in _sources().items():
        yield from _from_source(module, _parsed(file))
    for module in BUILT_IN_MODULES.split():
        try:
            yield from _from_objects(importlib.import_module(module))
        except ImportError:
            continue


def _parsed(file: Path) -> list[ast.stmt]:
    # A syntax tree has thousands of objects. They would trigger garbage collections over everything
    # that torch has allocated, and one collection takes longer than parsing the file.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(file.read_bytes()).body
    finally:
        if collecting:
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
    """The first paragraph that is not a signature, on one line, cut after a sentence.

    None if there is no such paragraph, or if it is too short.
    """
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
