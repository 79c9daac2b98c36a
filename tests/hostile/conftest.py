"""A working directory with a small data file, and the check of what a reader may do."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.errors import MOST_CHARACTERS, StudyError

ROWS = [{"context": f"Say {n}:", "target": f" {n}"} for n in range(20)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a case, with a small ``train.jsonl``."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(folder)
    return folder


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Inside, a StudyError of one line is expected, and any other exception fails the test."""
    said = ""
    try:
        yield
    except StudyError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) <= MOST_CHARACTERS
