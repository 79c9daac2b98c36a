"""Questions and answers from the standard library."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from study.config import DataConfig
from study.data import fingerprint, load_examples
from study.data import pydoc as source
from study.data import sources as sources_module


@pytest.fixture(scope="module")
def examples():
    return list(source.documentation())


def test_there_are_thousands_and_none_twice(examples):
    assert len(examples) > 3000
    assert len({e.target for e in examples}) == len({e.context for e in examples}) == len(examples)


def test_answers_are_the_docstrings(examples):
    answers = {e.context.removesuffix(" in Python? Answer:"): e.target.strip() for e in examples}
    dumps = answers["What does json.dumps(obj, skipkeys, ensure_ascii, ...) do"]
    assert dumps == " ".join(inspect.getdoc(json.dumps).split("\n\n")[0].split())
    join = answers["What does str.join(iterable) do"]
    assert join == " ".join(str.join.__doc__.split("\n\n")[0].split())


def test_another_process_reads_the_same(examples):
    """Other imports must not matter: pytest, for example, replaces hooks of sys and threading."""
    code = (
        "from study.data import fingerprint, pydoc;print(fingerprint(list(pydoc.documentation())))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == fingerprint(examples)


def test_the_cache_has_the_same_examples_until_a_source_changes(examples, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    config = DataConfig(name="pydoc", path=None, sequence_length=48, heldout=32, seed=0)
    (tmp_path / "json").mkdir()
    changed = tmp_path / "json/__init__.py"
    changed.write_text('def dumps(obj):\n    """A docstring that another version of it has."""\n')
    for sources in (source._sources(), {"json": changed}):
        monkeypatch.setattr(source, "_sources", lambda sources=sources: sources)
        for _ in range(2):  # made, then read
            sources_module._documentation.cache_clear()
            assert load_examples(config) == list(source.documentation())
    assert load_examples(config)[0].target == " A docstring that another version of it has."
    sources_module._documentation.cache_clear()
    assert len(list((tmp_path / "cache/arrays").glob("pydoc-*.npz"))) == 2
