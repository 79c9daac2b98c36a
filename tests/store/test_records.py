"""A record that can't be used makes its cell unreadable, and never stops a command."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest

from study.errors import StudyError
from study.store import cell_folders, find_cell, is_done, load_cells, load_records, read_cell
from study.store.records import FORMAT, record_hash
from tests.store.small_cells import CONFIG, complete, flip

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture
def folder(tmp_path):
    return complete(tmp_path)


def write_changed(path, key, value, with_hash=False):
    """Set a dotted key of a record; ``...`` deletes it. ``with_hash``: and the hash of the rest."""
    record = json.loads(path.read_text())
    *groups, last = key.split(".")
    place = record
    for group in groups:
        place = place[group]
    place[last] = value
    if value is ...:
        del place[last]
    if with_hash:
        record["sha256"] = record_hash(record)
    path.write_text(json.dumps(record))


BAD = {
    "binary": (bytes(range(256)), "JSONDecodeError"),
    "list": (b"[]", "valid dictionary"),
    "newer": (("format", FORMAT + 1), "later version of study (format: "),
    "no rank": (("config.adapter.rank", ...), "config.adapter.rank: Field required"),
    "unknown status": (("status", "done"), "status: "),
    "copied": (("cell_id", "def"), "copied from the cell 'def'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_makes_its_cell_unreadable(folder, kind):
    bad, reason = BAD[kind]
    if isinstance(bad, bytes):
        (folder / "record.json").write_bytes(bad)
    else:
        write_changed(folder / "record.json", *bad)
    record = read_cell(folder)
    assert (record["status"], record["cell_id"]) == ("unreadable", "abc"), "the folder's name"
    assert reason in record["error"]
    assert "\n" not in record["error"]
    assert not is_done(folder)
    assert load_records(folder.parents[1]) == []
    with pytest.raises(StudyError, match=r"cell abc of .* is unreadable"):
        find_cell(folder.parents[1], "ab")


ODD = {
    "config.optimizer": {},
    "config.optimizer.lr": [1e-4],
    "config.train": {},
    "config.train.steps": "many",
    "config.train.schedule": {"a": 1},
    "config.probes": {"truncations": {"a": 1}},
    "config.seed": 0.5,
    "adapted_share": "x",
    "expects": {"what": "slope"},
    "git": {"commit": None},
    "not_adapted": 5,
    "rows": [1],
    "started": None,
    "tables.metrics": {"sha256": "00"},
    "versions": ["torch"],
}
"""Keys of a record with values of another type."""


@pytest.mark.usefixtures("few_figures")
def test_every_command_leaves_out_cells_with_values_of_other_types(study_cli, tmp_path, caplog):
    study_dir = tmp_path / "results/s"
    complete(study_dir, "sound")
    for number, key in enumerate(ODD):
        folder = complete(study_dir, f"odd{number}")
        write_changed(folder / "record.json", key, ODD[key], with_hash=True)
        assert f"({key}" in read_cell(folder)["error"]
    to = ("--to", str(tmp_path / "to"))
    for words in (["status"], ["check"], ["analyze"], ["archive", *to], ["report", *to]):
        ran = study_cli(words[0], str(study_dir), *words[1:])
        assert ran.code == (words == ["check"]), ran.err
        assert "Traceback" not in ran.err
    assert f"{len(ODD)} of the cells of {study_dir} can't be read and are left out" in caplog.text


def test_what_is_not_a_cell_is_not_counted(folder):
    cells = folder.parent
    (cells / "notes.txt").write_text("mine")
    (cells / ".DS_Store").mkdir()
    assert cell_folders(cells.parent) == [folder]
    assert cell_folders(cells.parent / "nowhere") == []
    (cells / "empty").mkdir()
    assert read_cell(cells / "empty") is None
    shutil.copytree(folder, folder.with_name("abc copy"))
    assert [record["cell_id"] for record in load_records(folder.parents[1])] == ["abc"]


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_damaged_table_means_that_the_cell_is_not_done(folder, is_missing):
    table = folder / "metrics.parquet"
    assert is_done(folder)
    flip(table)
    if is_missing:
        table.unlink()
    assert not is_done(folder)
    seen = read_cell(folder)
    assert seen["status"] == ("unreadable" if is_missing else "complete"), "status reads no table"
    assert seen["config"] == CONFIG, "a row of the table of cells can still be made"


def test_a_complete_cell_without_its_adapter_is_not_done(folder):
    assert not is_done(folder, with_adapter=True)
    (folder / "adapter").mkdir()
    sha256 = hashlib.sha256(b"ab").hexdigest()
    weights = {"weights": {"bytes": 2, "sha256": sha256}}
    write_changed(folder / "record.json", "adapter", weights, with_hash=True)
    assert not is_done(folder, with_adapter=True)
    (folder / "adapter" / "weights").write_bytes(b"ab")
    assert is_done(folder, with_adapter=True)
    (folder / "adapter" / "weights").write_bytes(b"ac")
    assert not is_done(folder, with_adapter=True)


CHANGES = {
    "config.adapter.rank": 5,
    "config.optimizer.name": math.nan,
    "sources.data": "0" * 64,
}


@pytest.fixture
def paper_cell(tmp_path):
    record = load_records(REFERENCE / "paper_b3")[0]
    return complete(tmp_path, record["cell_id"], record)


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_configuration_is_noticed(paper_cell, key, study_cli):
    """The id of a cell is the hash of its configuration, as ``study train`` writes it."""
    assert is_done(paper_cell)
    write_changed(paper_cell / "record.json", key, CHANGES[key], with_hash=True)
    assert not is_done(paper_cell), "study train trains it again"
    assert load_records(paper_cell.parents[1]) == []
    ran = study_cli("check", str(paper_cell.parents[1]))
    assert ran.code == 1
    assert f"{paper_cell.name}: record.json is damaged" in ran.out + ran.err


def test_any_changed_key_is_noticed(paper_cell):
    """A record has the hash of all of its keys."""
    path = paper_cell / "record.json"
    whole, record = path.read_text(), json.loads(path.read_text())
    del record["sha256"]
    for key in [*record, *(f"config.{key}" for key in record["config"]), "config.data.prompt"]:
        for value in ("other", ...) if key != "config.data.prompt" else ("other",):
            write_changed(path, key, value)
            assert not is_done(paper_cell), key
            path.write_text(whole)
    assert is_done(paper_cell)


def test_a_record_without_its_hash_is_not_believed(paper_cell):
    """Records without one are of an earlier version, which did not describe ``config.yaml``."""
    path = paper_cell / "record.json"
    write_changed(path, "sha256", ...)
    assert not is_done(paper_cell)
    assert "it has no hash" in read_cell(paper_cell)["error"]
    write_changed(path, "files", ...)
    assert is_done(paper_cell)


def test_gamma_is_computed(folder):
    write_changed(folder / "record.json", "gamma", 7.0, with_hash=True)
    [row] = load_cells(folder.parents[1]).itertuples()
    assert row.gamma == pytest.approx(16 / 8**0.7)
