"""Checkpoints on disk: exact, atomic, the newest two, and damage that is seen."""

import errno
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from study.store import checkpoints
from study.store.checkpoints import Checkpoint, load_newest, save
from study.store.files import StorageError

CELL = "0123456789ab"
TENSORS = {
    "weights/a/A": np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7),
    "weights/a/B": np.zeros((7, 5), np.float32),
    "optimizer/0/step": np.array(3.0, np.float32),
    "dropout/a": np.arange(256, dtype=np.uint8),
    "optimizer/0/count": np.array([2**40, -1]),
    "alignment/a": np.full((2, 3), np.nan, np.float32),
    "optimizer/0/none": np.empty((0, 4), np.float64),
}
STATE = {"tokens": 2**53 - 1, "lr": 0.1 + 0.2, "groups": [{"betas": [0.9, None], "on": True}]}


def at(step: int, **changed: Any) -> Checkpoint:
    return Checkpoint(CELL, step, TENSORS | changed, STATE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
    path = save(tmp_path, at(40, transposed=transposed))
    assert path == tmp_path / "checkpoints" / "step-00000040.safetensors"
    found = load_newest(tmp_path, CELL)
    assert found is not None
    assert (found.cell_id, found.step, found.state) == (CELL, 40, STATE)
    assert set(found.tensors) == {*TENSORS, "transposed"}
    for name, array in {**TENSORS, "transposed": transposed}.items():
        loaded = found.tensors[name]
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        assert loaded.tobytes() == np.ascontiguousarray(array).tobytes()
        loaded.fill(1)  # memory of its own
    assert load_file(path)["weights/a/A"].tolist() == TENSORS["weights/a/A"].tolist()


def test_the_newest_two_are_kept_and_drafts_of_killed_processes_are_not(tmp_path: Path) -> None:
    save(tmp_path, at(5))
    draft = tmp_path / "checkpoints" / "step-00000006.safetensors.99.abc.partial"
    draft.write_bytes(b"half")
    for step in (10, 15, 20):
        save(tmp_path, at(step))
    assert names(tmp_path) == ["step-00000015.safetensors", "step-00000020.safetensors"]
    save(tmp_path, at(17))  # step 20 was not usable, or its steps would not run again
    assert names(tmp_path) == ["step-00000015.safetensors", "step-00000017.safetensors"]


def test_rows_are_put_on_disk_before_the_checkpoint_has_its_name(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def sync() -> None:
        seen.append([name for name in names(tmp_path) if not name.endswith(".partial")])

    save(tmp_path, at(5), sync)
    save(tmp_path, at(10), sync)
    assert seen == [[], ["step-00000005.safetensors"]]

    def fails() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(StorageError):
        save(tmp_path, at(15), fails)
    assert names(tmp_path) == ["step-00000005.safetensors", "step-00000010.safetensors"]


def test_none_is_found_where_there_is_none(tmp_path: Path) -> None:
    said: list[str] = []
    assert load_newest(tmp_path, CELL, said.append) is None
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-1.txt", "step-x.safetensors", "step-00000001.safetensors.9.partial"):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    assert load_newest(tmp_path, CELL, said.append) is None
    assert said == []


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path: Path) -> None:
    """Also in the header, where one name or number may become another that is as good."""
    save(tmp_path, at(5))
    path = save(tmp_path, at(10))
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    bits = [*range(64), *draw.integers(64, 8 * len(whole), 300)]
    damaged = [
        (whole[: b // 8] + bytes([whole[b // 8] ^ 1 << b % 8]) + whole[b // 8 + 1 :]) for b in bits
    ]
    damaged += [whole[:size] for size in (0, 7, 8, 100, len(whole) - 1)] + [whole + b"\0"]
    for content in damaged:
        path.write_bytes(content)
        said: list[str] = []
        found = load_newest(tmp_path, CELL, said.append)
        assert found is not None
        assert found.step == 5
        [line] = said
        assert line.startswith(f"cell {CELL}: its checkpoint of step 10 can't be used (")
        assert line.endswith("): trying the one before")
        assert "\n" not in line


def _rewrite(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON of a checkpoint and give the file the right hash."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    described = json.loads(header["__metadata__"]["checkpoint"])
    described["sha256"] = checkpoints._ABSENT
    edit(described)
    header["__metadata__"]["checkpoint"] = json.dumps(described)
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + raw[8 + length :]
    digest = checkpoints.hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(checkpoints._ABSENT.encode(), digest.encode(), 1))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda d: d.update(format=2), "format 2, not 1"),
        (lambda d: d.update(cell_id="another"), "it is of cell another, step 10"),
        (lambda d: d.update(step=9), f"it is of cell {CELL}, step 9"),
        (lambda d: d.pop("state"), "damaged: KeyError: 'state'"),
        (lambda d: d.pop("format"), "damaged: KeyError: 'format'"),
    ],
)
def test_another_format_cell_or_step_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    path = save(tmp_path, at(10))
    _rewrite(path, lambda described: None)
    assert load_newest(tmp_path, CELL) is not None
    _rewrite(path, edit)
    said: list[str] = []
    assert load_newest(tmp_path, CELL, said.append) is None
    assert said == [
        f"cell {CELL}: its checkpoint of step 10 can't be used ({reason}): "
        "trying the start of training"
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_fall_back(tmp_path: Path, value: float) -> None:
    save(tmp_path, at(5))
    broken = TENSORS["weights/a/B"].copy()
    broken[3, 2] = value
    save(tmp_path, at(10, **{"weights/a/B": broken}))
    said: list[str] = []
    found = load_newest(tmp_path, CELL, said.append)
    assert found is not None
    assert found.step == 5
    assert "weights/a/B is not finite" in said[0]


@pytest.mark.parametrize("metadata", [None, {}, {"checkpoint": "[]"}, {"checkpoint": "[" * 99999}])
def test_foreign_files_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step-00000010.safetensors"
    save_file(TENSORS, path, metadata)
    said: list[str] = []
    assert load_newest(tmp_path, CELL, said.append) is None
    assert len(said) == 1
    path.unlink()
    path.mkdir()
    assert load_newest(tmp_path, CELL, said.append) is None
    assert len(said) == 2


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, at(5))

    class Full:
        free = 10

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: Full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        save(tmp_path, at(10))
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step-00000005.safetensors"]


def test_a_large_checkpoint_is_written_without_a_copy(tmp_path: Path) -> None:
    import tracemalloc

    large = np.ones(1 << 24, np.float32)
    tracemalloc.start()
    save(tmp_path, Checkpoint(CELL, 1, {"weights/a": large}, {}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.nbytes / 8
