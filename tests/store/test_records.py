"""A record that can't be used makes its cell unreadable, and never stops a command."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.cli import cli
from study.errors import StudyError
from study.store import (
    CellWriter,
    cell_folders,
    cell_row,
    damage,
    find_cell,
    is_done,
    load_cells,
    load_records,
    read_cell,
    read_record,
)
from study.store.integrity import check_study
from study.store.records import FORMAT
from study.vocabulary.statuses import STATUSES
from tests.store.small_cells import CONFIG, RECORD


def complete(study_dir: Path, cell_id: str = "abc") -> Path:
    """A complete cell with one row."""
    folder = study_dir / "cells" / cell_id
    writer = CellWriter.open(folder, "x: 1\n", RECORD | {"cell_id": cell_id})
    writer.append("metrics", pd.DataFrame([{"step": 0, "tokens": 1, "loss": 1.0, "seconds": 0.5}]))
    writer.close("complete", steps_done=0)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return complete(tmp_path)


def change(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Set dotted keys, with ``__`` for a dot; a key whose value is ``...`` is deleted."""

    def changed(record: dict[str, Any]) -> dict[str, Any]:
        for key, value in values.items():
            *groups, last = key.split("__")
            place = record
            for group in groups:
                place = place[group]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        return record

    return changed


BAD: dict[str, tuple[bytes | Callable[[dict[str, Any]], Any], str]] = {
    "empty": (b"", "not valid JSON"),
    "binary": (bytes(range(256)), "not valid JSON"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "list": (b"[]", "content=[]"),
    "nothing": (b"{}", "no cell_id"),
    "newer": (change(format=FORMAT + 1), "update study"),
    "no rank": (change(config__adapter__rank=...), "no config.adapter.rank"),
    "rank of text": (change(config__adapter__rank="8"), "config.adapter.rank='8'"),
    "rank that is no number": (change(config__adapter__rank=math.nan), "config.adapter.rank=nan"),
    "huge steps": (change(config__train__steps=10**400), "config.steps=1000"),
    "deep config": (change(config__data={"a": {"b": 1}}), "config.a={"),
    "unknown status": (change(status="done"), "status='done'"),
    "unreadable as status": (change(status="unreadable"), "status='unreadable'"),
    "seconds of text": (change(seconds="1"), "seconds='1'"),
    "sources of a list": (change(sources=[1]), "sources=[1]"),
    "a table elsewhere": (change(tables={"../../x": {"bytes": 1, "sha256": "00"}}), "tables"),
    "an adapter elsewhere": (change(adapter={"../x": {"bytes": 1, "sha256": "00"}}), "adapter"),
    "a table without hash": (change(tables={"metrics": {"bytes": 1}}), "no tables.metrics.sha256"),
    "half a character": (change(model="\ud800"), "not valid JSON"),
    "a key that is no name": (change(config__data={"a b": 1}), "config.'a b'"),
    "copied": (change(cell_id="def"), "copied from the cell 'def'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_makes_its_cell_unreadable(folder: Path, kind: str) -> None:
    bad, reason = BAD[kind]
    path = folder / "record.json"
    if isinstance(bad, bytes):
        path.write_bytes(bad)
    else:
        path.write_text(json.dumps(bad(json.loads(path.read_text()))))
    for record in (read_record(folder), read_cell(folder)):
        assert record is not None
        assert record["status"] == "unreadable"
        assert record["cell_id"] == "abc", "the name of the folder"
        assert reason in record["error"]
        assert "\n" not in record["error"]
        assert len(record["error"]) < 300
        cell_row(record)
    assert not is_done(folder)
    assert load_records(folder.parents[1]) == []
    with pytest.raises(StudyError, match=r"cell abc of .* is unreadable"):
        find_cell(folder.parents[1], "ab")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop"])
def test_what_is_not_a_file_is_not_read(folder: Path, kind: str) -> None:
    path = folder / "record.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    record = read_cell(folder)
    assert record is not None
    assert record["status"] == "unreadable"


@pytest.mark.parametrize("name", ["lock", "metrics.arrows", "metrics.parquet"])
def test_no_file_of_a_cell_may_be_a_pipe(folder: Path, name: str) -> None:
    """Reading one would never end."""
    status = "complete" if name == "metrics.parquet" else "running"
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"status": status}))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert read_cell(folder) is not None
    assert not is_done(folder)
    assert list(check_study(folder.parents[1])) or status == "running"


def test_a_record_without_a_format_is_an_older_one(folder: Path) -> None:
    path = folder / "record.json"
    older = json.loads(path.read_text())
    del older["format"], older["tables"]
    path.write_text(json.dumps(older))
    assert read_cell(folder) == older
    assert is_done(folder)
    (folder / "metrics.parquet").unlink()
    assert not is_done(folder)


def test_the_committed_results_are_readable() -> None:
    reference = Path(__file__).parents[2] / "results" / "reference"
    studies = {path.parent for path in reference.glob("*/cells.parquet")}
    assert len(studies) == 19
    for study in studies:
        for folder in cell_folders(study):
            record = read_cell(folder)
            assert record is not None
            assert record["status"] != "unreadable", record["error"]
            assert is_done(folder) == STATUSES[record["status"]].is_done


def test_strangers_in_the_folder_of_cells_are_not_cells(folder: Path) -> None:
    cells = folder.parent
    (cells / "notes.txt").write_text("mine")
    (cells / ".DS_Store").mkdir()
    (cells / "dead").symlink_to(cells / "nowhere")
    assert cell_folders(cells.parent) == [folder]
    assert cell_folders(cells.parent / "nowhere") == []
    (cells / "empty").mkdir()
    assert read_cell(cells / "empty") is None


def test_a_copied_cell_is_counted_once_and_named(folder: Path) -> None:
    copy = folder.with_name("abc copy")
    shutil.copytree(folder, copy)
    assert [record["cell_id"] for record in load_records(folder.parents[1])] == ["abc"]
    record = read_cell(copy)
    assert record is not None
    assert record["error"] == "copied from the cell 'abc'"
    assert find_cell(folder.parents[1], "ab")[0] == folder


def test_a_cell_is_found_by_the_begin_of_its_id(tmp_path: Path) -> None:
    for name in ("abc", "abd", "ab"):
        complete(tmp_path, name)
    assert find_cell(tmp_path, "abd")[0].name == "abd"
    assert find_cell(tmp_path, "ab")[0].name == "ab", "the whole id"
    with pytest.raises(StudyError, match=r"3 cells of .* begin with 'a': choose from ab, abc, abd"):
        find_cell(tmp_path, "a")
    for missing in ("x", "../ab", "/", "ab/../abc"):
        with pytest.raises(StudyError, match="no cell of"):
            find_cell(tmp_path, missing)


@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_a_damaged_table_means_that_the_cell_is_not_done(folder: Path, how: str) -> None:
    table = folder / "metrics.parquet"
    content = bytearray(table.read_bytes())
    assert is_done(folder)
    if how == "missing":
        table.unlink()
    elif how == "cut":
        table.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 4
        table.write_bytes(content)
    assert not is_done(folder)
    record = read_record(folder)
    assert record is not None
    assert "metrics.parquet" in str(damage(folder, record))
    seen = read_cell(folder)
    assert seen is not None
    assert seen["status"] == ("complete" if how == "changed" else "unreadable")
    assert seen["config"] == CONFIG, "a row of the table of cells can still be made"


def test_a_complete_cell_without_its_adapter_is_not_done(folder: Path) -> None:
    assert not is_done(folder, with_adapter=True)
    (folder / "adapter").mkdir()
    assert is_done(folder, with_adapter=True), "an early record does not name the files"
    record = json.loads((folder / "record.json").read_text())
    sha256 = hashlib.sha256(b"ab").hexdigest()
    record["adapter"] = {"weights": {"bytes": 2, "sha256": sha256}}
    (folder / "record.json").write_text(json.dumps(record))
    assert not is_done(folder, with_adapter=True)
    (folder / "adapter" / "weights").write_bytes(b"ab")
    assert is_done(folder, with_adapter=True)
    assert load_cells(folder.parents[1], with_unreadable=True)["status"][0] == "complete"
    (folder / "adapter" / "weights").write_bytes(b"ac")
    assert not is_done(folder, with_adapter=True)
    row = load_cells(folder.parents[1], with_unreadable=True).iloc[0]
    assert row["status"] == "unreadable"
    assert row["error"].startswith("adapter/weights is damaged")


def paths(value: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key of nested mappings."""
    if not isinstance(value, dict):
        return [prefix]
    inner = [path for key, part in value.items() for path in paths(part, (*prefix, key))]
    return [prefix, *inner] if prefix else inner


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_value_in_any_key_gives_a_row_or_a_reason(folder: Path, data: st.DataObject) -> None:
    record = deepcopy(RECORD) | {"status": "complete", "steps_done": 0, "format": 1}
    *groups, last = data.draw(st.sampled_from(paths(record)))
    place = record
    for group in groups:
        place = place[group]
    place[last] = data.draw(ANYTHING)
    (folder / "record.json").write_text(json.dumps(record))
    read = read_cell(folder)
    assert read is not None
    assert read["cell_id"] == "abc"
    row = pd.DataFrame([cell_row(read)])
    assert row["rank"].dtype == float
    is_done(folder)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.binary(max_size=200), cut=st.integers(0, 2000))
def test_any_bytes_give_a_reason(folder: Path, content: bytes, cut: int) -> None:
    path = folder / "record.json"
    path.write_bytes(path.read_bytes()[:cut] + content)
    record = read_cell(folder)
    assert record is not None
    assert record["status"] in STATUSES


def identified(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A complete cell whose id is the hash of its configuration, as those that study trains."""
    archived = Path(__file__).parents[2] / "results" / "reference" / "paper_b3"
    record = load_records(archived)[0]
    folder = tmp_path / "cells" / record["cell_id"]
    writer = CellWriter.open(folder, "x: 1\n", record)
    writer.append("metrics", pd.DataFrame([{"step": 0, "tokens": 1, "loss": 1.0, "seconds": 0.5}]))
    writer.close("complete", steps_done=0)
    return folder, json.loads((folder / "record.json").read_text())


CHANGES = {
    "rank": change(config__adapter__rank=5),
    "alpha": change(config__adapter__alpha=17.0),
    "scaling": change(config__adapter__scaling="rslora"),
    "rate": change(config__optimizer__lr=0.5),
    "optimizer": change(config__optimizer__name="lion"),
    "seed": change(config__seed=6),
    "steps": change(config__train__steps=99),
    "data": change(sources__data="0" * 64),
    "gamma": change(gamma=0.123),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_configuration_is_noticed(tmp_path: Path, kind: str) -> None:
    folder, record = identified(tmp_path)
    assert is_done(folder)
    assert run_check(tmp_path).exit_code == 0
    (folder / "record.json").write_text(json.dumps(CHANGES[kind](record)))
    assert not is_done(folder), "study train trains it again"
    assert load_records(tmp_path) == []
    result = run_check(tmp_path)
    assert result.exit_code == 1
    assert f"{folder.name}: record.json was changed: " in result.output


def run_check(study_dir: Path) -> Result:
    return CliRunner().invoke(cli, ["check", str(study_dir)])
