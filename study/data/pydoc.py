"""``data=pydoc``: the standard library's own documentation as question and answer.

Real English prose about a real subject, on every machine that has a Python, with no download and no licence to carry.
The text is that of the Python that runs, so it differs a little between versions (and, for the functions of ``os`` and
``socket``, between platforms): the data's fingerprint is part of a cell's identity and tells such runs apart.
"""

import ast
import gc
import importlib
import inspect
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

# Written in Python: read from their source, so that none is imported. Only modules of every supported version, and none
# that Linux distributions package apart (tkinter, turtle, venv, idlelib).
SOURCE_MODULES = """
    abc ast asyncio.base_events asyncio.events asyncio.exceptions asyncio.futures asyncio.locks asyncio.protocols
    asyncio.queues asyncio.runners asyncio.selector_events asyncio.streams asyncio.subprocess asyncio.tasks
    asyncio.timeouts asyncio.transports base64 bdb bz2 calendar cmd code codecs codeop collections compileall
    concurrent.futures._base configparser contextlib copy csv ctypes curses.textpad dataclasses datetime difflib dis
    email.charset email.encoders email.errors email.feedparser email.generator email.header email.headerregistry
    email.iterators email.message email.mime.base email.parser email.policy email.utils enum filecmp fileinput
    fnmatch fractions ftplib functools genericpath getopt getpass glob graphlib gzip heapq hmac html.parser
    http.client http.cookiejar http.cookies http.server imaplib importlib.abc importlib.machinery importlib.metadata
    importlib.resources.abc importlib.util inspect ipaddress json json.encoder keyword linecache locale logging
    logging.config logging.handlers lzma mailbox mimetypes multiprocessing.connection multiprocessing.context
    multiprocessing.managers multiprocessing.pool multiprocessing.process multiprocessing.reduction
    multiprocessing.shared_memory multiprocessing.util netrc ntpath numbers operator optparse os pathlib pdb pickle
    pkgutil platform poplib posixpath pprint pstats pyclbr pydoc queue quopri random re reprlib rlcompleter runpy
    sched secrets selectors shlex shutil site smtplib socket socketserver sqlite3.dump ssl stat statistics
    subprocess symtable sysconfig tabnanny tarfile tempfile textwrap threading timeit tokenize tomllib trace
    traceback tracemalloc types typing unittest.case unittest.loader unittest.mock unittest.result unittest.runner
    unittest.suite unittest.util urllib.error urllib.parse urllib.request urllib.response urllib.robotparser uuid
    warnings weakref webbrowser wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.types wsgiref.util
    wsgiref.validate xml.dom.minidom xml.etree.ElementTree xml.sax.handler xml.sax.saxutils xml.sax.xmlreader
    xmlrpc.client xmlrpc.server zipapp zipfile zipimport
"""

# Written in C, and cheap to import: their documentation is in the objects. A build may lack one or another. Not sys and
# threading: other libraries replace their hooks, and the data must not depend on what else is imported.
BUILT_IN_MODULES = """
    array atexit binascii builtins cmath collections datetime decimal faulthandler functools gc io itertools marshal
    math mmap operator os pickle select signal socket sqlite3 struct time unicodedata weakref zlib
"""

_SHORTEST, _LONGEST = 30, 280  # characters of an answer: about 7 and 65 tokens


def documentation() -> Iterator[tuple[str, str]]:
    """Yield ``(question, answer)``, in a fixed order, no question and no answer twice.

    The question names a public function, method, property or class, with its first three parameters; the answer is
    the first paragraph of its docstring, its white space made single spaces, cut at the end of a sentence where it is
    long. An answer begins with a space, because the question ends at a colon and byte-pair tokenizers spell a word
    after a space differently from one glued to the mark before it.
    """
    seen = set()
    for question, docstring, name in _entries():
        answer = _first_paragraph(docstring, name.rpartition(".")[2])
        if answer and answer not in seen and question not in seen:
            seen |= {question, answer}
            yield f"{question} in Python? Answer:", f" {answer}"


def _entries() -> Iterator[tuple[str, str, str]]:
    """(question, docstring, dotted name) of everything documented."""
    folder = Path(sysconfig.get_path("stdlib"))
    for module in SOURCE_MODULES.split():
        stem = folder.joinpath(*module.split("."))
        file = next(
            (f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file()), None
        )
        if file is not None:
            yield from _from_source(module, _parsed(file))
    for module in BUILT_IN_MODULES.split():
        try:
            yield from _from_objects(importlib.import_module(module))
        except ImportError:
            continue


def _parsed(file: Path) -> list[ast.stmt]:
    # A syntax tree is thousands of objects: they would set off collections of all that torch keeps alive, each of which
    # takes longer than parsing the file.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(file.read_bytes()).body
    finally:
        if collecting:
            gc.enable()


def _from_source(prefix: str, body: list[ast.stmt]) -> Iterator[tuple[str, str, str]]:
    for node in body:
        if not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        docstring = ast.get_docstring(node, clean=False)
        if isinstance(node, ast.ClassDef):
            if docstring:
                yield f"What is {name}", docstring, name
            yield from _from_source(name, node.body)
        elif docstring:
            if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield f"What is {name}", docstring, name
            else:
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                yield (
                    f"What does {name}{_parameters([a.arg for a in arguments])} do",
                    docstring,
                    name,
                )


def _from_objects(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    prefix = "" if module.__name__ == "builtins" else f"{module.__name__}."
    for key in sorted(getattr(module, "__all__", vars(module))):
        value = getattr(module, key, None)
        if key.startswith("_"):
            continue
        if isinstance(value, BuiltinFunctionType):
            yield from _described(f"{prefix}{key}", value)
        elif isinstance(value, type):
            yield from _described(f"{prefix}{key}", value)
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
        except (
            Exception
        ):  # many in C do not tell their parameters, and 3.13's select.epoll trips inspect itself
            arguments = ""
        yield f"What does {name}{arguments} do", docstring, name


_C_FUNCTIONS = (BuiltinFunctionType, MethodDescriptorType, ClassMethodDescriptorType, staticmethod)


def _parameters(names: list[str]) -> str:
    """``(obj, fp, skipkeys, ...)``: enough to understand an answer that speaks of them, and little of the sequence."""
    names = [name for name in names if name not in ("self", "cls", "type")]
    return f"({', '.join([*names[:3], '...'] if len(names) > 3 else names)})"


def _first_paragraph(docstring: str, function: str) -> str | None:
    """The first paragraph that is prose, on one line, or None where there is none of a fitting length."""
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        text = " ".join(paragraph.split())
        if text.startswith(f"{function}(") or "->" in text:  # functions in C repeat their signature
            continue
        kept = ""
        for sentence in re.split(r"(?<=[.!?:]) (?=[A-Z])", text):
            if len(kept) + 1 + len(sentence) > _LONGEST:
                break
            kept = f"{kept} {sentence}".lstrip()
        return kept if len(kept) >= _SHORTEST else None
    return None
