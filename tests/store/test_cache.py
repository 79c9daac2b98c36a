"""Hashes of files are cached, and damaged caches are ignored."""

import hashlib
import os

import pytest

from study.store import cache


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))


def test_a_hash_is_cached_until_the_file_changes(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    os.utime(file, ns=(0, 0))
    assert cache.file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 0))
    assert cache.file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    os.utime(file, ns=(1, 1))
    assert cache.file_sha256(file) == hashlib.sha256(b"two").hexdigest()
    (note,) = (cache.cache_folder() / "sha256").iterdir()
    for bad in ("[", "", "[1]"):
        note.write_text(bad)
        assert cache.file_sha256(file) == hashlib.sha256(b"two").hexdigest(), "a damaged note"
