"""Data files that a stranger made: one line each, in bounded time and memory."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .changes import Refused
from .conftest import BOMB

GOOD = b'{"context": "a", "target": "b"}\n{"context": "c", "target": "d"}\n'


def row(target: str = '"b"', context: str = '"a"') -> bytes:
    return f'{{"context": {context}, "target": {target}}}\n'.encode()


Content = bytes | Callable[[], bytes]
"""Of a file. A function makes what is large, because every process of the tests reads this file."""


def made(content: Content) -> bytes:
    return content() if callable(content) else content


LINES: dict[str, tuple[Content, str]] = {
    "a line of 100 MB": (lambda: row(f'"{"x" * 100_000_000}"'), "line 1 is longer than 4 MiB"),
    "5 MB of zeros": (lambda: bytes(5_000_000), "line 1 is longer than 4 MiB"),
    "eleven million blank lines": (lambda: b"\n" * 11_000_000, "has over 10000000 lines"),
    "latin-1": (GOOD + 'é "'.encode("latin-1"), "line 3 is not UTF-8"),
    "UTF-16": ("\ufeff{}".encode("utf-16"), "line 1 is not UTF-8"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), "line 1 is not valid JSON"),
    "binary": (bytes(range(256)) * 9, "line 1 is not"),
    "null bytes": (GOOD + b"\0\0\n", "line 3 is not valid JSON"),
    "a null byte in a string": (row('"\0"'), "line 1 is not valid JSON"),
    "empty": (b"", "has no examples"),
    "blank lines": (b"\n \r\n\t\n", "has no examples"),
    "null": (b"null\n", "line 1 is of type NoneType"),
    "a number": (b"7\n", "line 1 is of type int"),
    "NaN": (b"NaN\n", "line 1 is of type float"),
    "a list": (b"[]\n", "line 1 is of type list"),
    "a document on several lines": (b'[\n{"context": "a"}]', "line 1 is not valid JSON"),
    "other keys": (
        b'{"question": "a", "answer": "b"}\n',
        "has the fields 'question', 'answer', wh",
    ),
    "another format later": (GOOD + b'{"text": "a"}\n', "no key 'context' (its keys: 'text'"),
    "many keys": (
        lambda: json.dumps({str(n): n for n in range(200_000)}).encode(),
        "has the fields '0', '1'",
    ),
    "a number for text": (row("7"), "'target' is of type int"),
    "a list for text": (row('["b"]'), "'target' is of type list"),
    "an object for text": (row(context="{}"), "'context' is of type dict"),
    "400 digits": (row("9" * 400), "'target' is of type int"),
    "5000 digits": (row("9" * 5000), "line 1 is not valid JSON"),
    "a target twice": (row('"b", "target": "c"'), "line 1 has the key 'target' twice"),
    "a context twice": (row('"b", "context": "c"'), "line 1 has the key 'context' twice"),
    "deep lists": (b"[" * 1_000_000, "line 1 is not valid JSON"),
    "deep objects": (b'{"a":' * 500_000, "line 1 is not valid JSON"),
    "a million empty lists": (row("[" + "[]," * 999_999 + "1]"), "'target' is of type list"),
    "a lone surrogate": (row('"\\ud800"'), "unpaired surrogate"),
    "a blank target": (row('" \\n"'), "'target' is empty"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_data_file(refused: Refused, case: str) -> None:
    content, says = LINES[case]
    refused("train data.path=x.jsonl", says, files={"x.jsonl": made(content)}, seconds=BOMB)


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, 1)


FILES: dict[str, tuple[str, Content, str]] = {
    "300 MB of zeros": (
        "x.jsonl.gz",
        lambda: zipped(bytes(3 * 10**8)),
        "line 1 is longer than 4 MiB",
    ),
    "two million lists": (
        "x.json",
        lambda: b"[" + b"[]," * 2_000_000 + b"1]",
        "row 1 is of type list",
    ),
    "a large list": ("x.json", lambda: b"[" + b'"",' * 20_000_000 + b"1]", "is one list of over"),
    "a line of 9 MB": ("x.csv", lambda: b"text\n" + b"a" * 9_000_000, "line 2 is longer than"),
    "random bytes": ("x.parquet", lambda: os.urandom(1_000_000), "can't be read as Parquet"),
    "a footer that claims much": (
        "x.parquet",
        b"PAR1" + bytes(99) + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
        "can't be read as Parquet",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_kind(refused: Refused, case: str) -> None:
    name, content, says = FILES[case]
    refused(f"train data.path={name}", says, files={name: made(content)}, seconds=BOMB)


TURNS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
LOOP = "{% for n in range(99999) %}" * 4 + "{% endfor %}" * 4
CHATS: dict[str, tuple[bytes, str, str]] = {
    "no template": (TURNS, "", "give data.chat_template=chatml"),
    "a template without end": (TURNS, LOOP, "runs for too long"),
    "a template of 10 GB": (TURNS, "{{ 'a' * 9999999999 }}", "MemoryError"),
    "a large power": (TURNS, "{{ 9 ** 9 ** 9 ** 9 }}", "computes powers"),
    "a file of the machine": (TURNS, "{% include '/etc/passwd' %}", "fails on the conversation"),
    "a template of 2 MiB": (TURNS, "a" * (2 << 20), "is larger than 1 MiB"),
    "no turns": (b'{"messages": []}\n', "a", "line 1 has no turn of the assistant"),
}


@pytest.mark.parametrize("case", CHATS)
def test_a_conversation(refused: Refused, case: str) -> None:
    content, template, says = CHATS[case]
    words = "data.chat_template=t.jinja" if template else ""
    files = {"x.jsonl": content, "t.jinja": template}
    refused(f"train data.path=x.jsonl {words}", says, files=files, seconds=BOMB)


PLACES: dict[str, tuple[str, str]] = {
    "zeros without end": ("/dev/zero", "is not a file"),
    "random bytes without end": ("/dev/urandom", "is not a file"),
    "nothing": ("/dev/null", "is not a file"),
    "a pipe": ("pipe", "is not a file"),
    "a folder": (".", "is a folder"),
    "a link to itself": ("loop", "can't be read"),
    "the memory of a process": ("/proc/self/mem", "can't be read"),
    "absent": ("absent", "does not exist"),
    "a long name": ("x" * 300, "is not a path"),
    "an unknown user": ("'~nobody-of-this-name/x'", "can't be read"),
    "inside a file": ("train.jsonl/x", "can't be read (Not a directory)"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_place_of_data(refused: Refused, here: Path, case: str) -> None:
    path, says = PLACES[case]
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    refused(["train", f"data.path={path}"], says, seconds=BOMB)


@pytest.mark.parametrize("copies", [1, 1000])
def test_one_example(run: Callable[..., Any], copies: int) -> None:
    """Seen when the data is split, before weights are loaded."""
    ended = run("train data.path=x.jsonl", files={"x.jsonl": row() * copies}, seconds=BOMB)
    assert ended.code == 2
    assert "too few distinct examples (1)" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
