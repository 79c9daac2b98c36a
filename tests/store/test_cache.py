"""Hashes of files and computed arrays are cached, and damaged caches are ignored."""

import hashlib
import os

import numpy as np
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


def test_arrays_are_made_once_and_again_if_damaged():
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(3, dtype=np.int32), "b": np.array([], dtype=np.int64)}

    for _ in range(2):
        found = cache.kept_arrays("name", make)
        assert {key: (array.tolist(), array.dtype) for key, array in found.items()} == {
            "a": ([0, 1, 2], np.int32),
            "b": ([], np.int64),
        }
    assert len(made) == 1
    (file,) = cache.cache_folder().glob("arrays/name.npz")
    content = file.read_bytes()
    flips = range(0, 300, 7)
    damaged = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in flips]
    for bad in [content[:40], b"", *damaged]:
        file.write_bytes(bad)
        assert cache.kept_arrays("name", make)["a"].tolist() == [0, 1, 2]
