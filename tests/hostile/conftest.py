"""A working directory with a small data file, and the check of what a reader may do."""

import json
from pathlib import Path

import pytest

ROWS = [{"context": f"Say {n}:", "target": f" {n}"} for n in range(20)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a case, with a small ``train.jsonl``."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(folder)
    return folder
