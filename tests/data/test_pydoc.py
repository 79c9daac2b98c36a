"""Questions and answers from the standard library."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from study.data import Example, fingerprint, pydoc

ANOTHER = (
    "from study.data import fingerprint, pydoc;print(fingerprint(list(pydoc.documentation())))"
)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(pydoc.documentation())


def test_there_are_thousands_of_docstrings_and_none_twice(examples: list[Example]) -> None:
    assert len(examples) > 3000
    assert len({e.target for e in examples}) == len({e.context for e in examples}) == len(examples)
    answers = {e.context.removesuffix(" in Python? Answer:"): e.target.strip() for e in examples}
    dumps = answers["What does json.dumps(obj, skipkeys, ensure_ascii, ...) do"]
    assert dumps == " ".join((inspect.getdoc(json.dumps) or "").split("\n\n")[0].split())
    join = answers["What does str.join(iterable) do"]
    assert join == " ".join((str.join.__doc__ or "").split("\n\n")[0].split())


def test_another_process_reads_the_same(examples: list[Example]) -> None:
    """Other imports must not matter: pytest, for example, replaces hooks of sys and threading."""
    root = Path(__file__).parents[2]
    ran = [sys.executable, "-c", ANOTHER]
    done = subprocess.run(ran, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(examples)
