"""A file's hash is remembered, and never for another content."""

import hashlib
import os
from pathlib import Path

import pytest

from study.errors import StudyError
from study.models import cache


def test_a_hash_is_read_once_and_forgotten_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert cache.file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patched:
        patched.setattr(cache.hashlib, "file_digest", None)
        assert cache.file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert cache.file_sha256(file) == hashlib.sha256(b"two").hexdigest()


def test_a_damaged_note_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    cache.file_sha256(file)
    (note,) = (cache.cache_folder() / "sha256").iterdir()
    note.write_text("[")
    assert cache.file_sha256(file) == hashlib.sha256(b"one").hexdigest()


def test_a_cache_folder_that_can_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StudyError, match="set STUDY_CACHE"):
        cache.cache_folder()
