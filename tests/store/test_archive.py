"""An archived study is the study: the same tables, exponents and records, read in place."""

import json
import os
import shutil
import signal
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import study
from study.analysis import load_tables
from study.errors import StudyError
from study.store import (
    cell_folders,
    files,
    is_done,
    load_measured,
    load_records,
    rows_of,
    write_table,
)
from study.store.archive import FILES, check_study, with_hashes, write_archive
from study.store.records import record_hash
from tests.faults.instrument import Instrument, Plan
from tests.store.small_cells import RECORD, complete, flip

TABLES = ("metrics", "probes", "truncations", "examples", "exponents", "stable", "rates", "losses")


def sweep(results, short, *overrides):
    """Two cells of each seed on the tiny base, with truncations."""
    from study.sweeps import app

    cells = ["adapter.rank=2,8", "probes.truncations=[1]", "train.example_losses=true"]
    app.main(["-m", "name=mine", f"results_dir={results}", *short, *cells, *overrides])


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory, short):
    results = tmp_path_factory.mktemp("trained") / "results"
    sweep(results, short, "seed=0,1")
    return results / "mine"


@pytest.fixture(scope="module")
def archived(study_dir):
    to = study_dir.parents[1] / "kept/mine"
    assert write_archive(study_dir, to, "pictures") == []
    return to


def test_tables_and_exponents_of_an_archive_are_those_of_the_study(study_dir, archived):
    assert sorted(os.listdir(archived)) == sorted(FILES)
    before, found = load_tables(study_dir), study.load(str(archived))
    moved = before.cells.assign(study="mine")
    pd.testing.assert_frame_equal(found.cells, moved, check_exact=True)
    for name in TABLES:
        assert len(getattr(found, name)) or name == "rates"
        pd.testing.assert_frame_equal(getattr(found, name), getattr(before, name), check_exact=True)
    for folder in cell_folders(archived):
        rows = rows_of(study_dir / "cells" / folder.name, "probes")
        pd.testing.assert_frame_equal(rows_of(folder, "probes"), rows, check_exact=True)
    cells = pd.read_parquet(archived / "cells.parquet")
    assert json.loads(cells["record"][0])["cell_id"] == cells["cell_id"][0]


def test_an_archive_names_its_own_folders_and_is_whole(study_dir, archived, works):
    assert [*check_study(archived)] == []
    said = works("check", archived).out
    assert said == "4 cells (4 archived, which keeps no adapters): no problem\n"
    before = {record["cell_id"]: record for record in load_records(study_dir)}
    places = {"results_dir": archived.parent.name, "plots_dir": "pictures"}
    for record in load_records(archived):
        of_study = before[record["cell_id"]]
        of_files = ("tables", "adapter", "files", "sha256")
        kept = {key: of_study[key] for key in of_study if key not in of_files}
        assert record == kept | {"config": kept["config"] | places}


@pytest.mark.usefixtures("few_figures")
def test_what_is_given_to_others_names_no_folder_of_this_machine(
    study_dir, archived, tmp_path, works, jsonl
):
    """The hash of the data says which file it was; a folder may name a customer."""
    works("report", study_dir, "--to", tmp_path / "page")
    works("dashboard", study_dir, "--export", tmp_path / "page.html")
    records = [folder / "record.json" for folder in cell_folders(study_dir)]
    texts = [path.read_text() for path in [*records, *tmp_path.rglob("*.*ml")]]
    texts += [path.read_text() for path in tmp_path.rglob("*.md")]
    texts.append(pd.read_parquet(archived / "cells.parquet").to_csv())
    assert len(texts) > len(records) + 2
    for text in texts:
        assert str(jsonl.parent) not in text
        assert str(study_dir.parents[1]) not in text
    assert set(load_tables(archived).cells["data"]) == {jsonl.name}


def test_records_of_earlier_versions_lose_their_folders_too(tmp_path):
    theirs = {"data": {"path": ["/home/me/a.jsonl", "org/hub"]}, "model": {"path": "~/base"}}
    record = RECORD | {"data": "/home/me/a.jsonl, org/hub", "model": "~/base"}
    path = complete(tmp_path / "study", record=record) / "record.json"
    earlier = json.loads(path.read_text())
    earlier |= {"data": record["data"], "model": record["model"]}
    earlier["config"] = {**earlier["config"], **theirs}
    earlier["sha256"] = record_hash(earlier)
    path.write_text(json.dumps(earlier))
    [read] = load_records(tmp_path / "study")
    assert (read["data"], read["model"]) == ("a.jsonl, org/hub", "base")
    write_archive(tmp_path / "study", tmp_path / "kept/study")
    text = pd.read_parquet(tmp_path / "kept/study/cells.parquet").to_csv()
    assert "/home/me" not in text
    assert "~" not in text


@pytest.mark.usefixtures("few_figures")
def test_a_read_only_archive_can_be_read_by_every_command(archived, tmp_path, works):
    copy = Path(shutil.copytree(archived, tmp_path / "mine"))
    copy.chmod(0o555)
    try:
        for words in (["status"], ["check"], ["report", "--to", tmp_path / "page"]):
            works(words[0], copy, *words[1:])
    finally:
        copy.chmod(0o755)
    assert sorted(os.listdir(copy)) == sorted(FILES)


def test_a_sweep_in_an_archived_study_trains_what_is_not_there(archived, tmp_path, short):
    folder = Path(shutil.copytree(archived, tmp_path / "results/mine"))
    assert all(map(is_done, cell_folders(folder)))
    sweep(tmp_path / "results", short, "seed=1,2")
    assert len(cell_folders(folder)) == 6
    assert len(os.listdir(folder / "cells")) == 2
    tables = load_measured(folder)
    assert len(tables.cells) == 6
    assert set(tables.metrics["cell_id"]) == set(tables.cells["cell_id"])


def shuffled(path):
    rows = pq.read_table(path)
    pq.write_table(rows.take(np.random.default_rng(0).permutation(len(rows))), path)


DAMAGE = {
    "missing": Path.unlink,
    "cut": lambda path: pq.write_table(pq.read_table(path).slice(0, 2), path),
    "shuffled": shuffled,
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_gets_one_line(archived, tmp_path, kind, file, study_cli):
    copy = Path(shutil.copytree(archived, tmp_path / "mine"))
    DAMAGE[kind](copy / file)
    if (kind, file) == ("missing", "cells.parquet"):
        assert cell_folders(copy) == []
        return
    checked = study_cli("check", str(copy))
    assert (checked.code, (checked.out + checked.err).count("\n")) == (1, 1)
    assert "is no archive of a study, or is damaged" in checked.out + checked.err
    with pytest.raises(StudyError, match="get it again"):
        load_measured(copy)


@pytest.fixture
def old_and_new(tmp_path, begin):
    """Two states of a study, which differ in every table. Only the first has distances."""
    begin("abc", 1).close("complete")
    write_table(tmp_path / "distances.parquet", pd.DataFrame({"cell_id": ["abc"], "value": [1.0]}))
    old = shutil.copytree(tmp_path / "cells", tmp_path / "old/cells").parent
    (tmp_path / "distances.parquet").rename(old / "distances.parquet")
    begin("abd", 3).close("complete")
    return old, shutil.copytree(tmp_path / "cells", tmp_path / "new/cells").parent


def seen(study_dir):
    tables = load_measured(study_dir)
    frames = tables.cells["cell_id"], tables.metrics, tables.probes, tables.distances
    return "\n".join(str(frame.to_dict()) for frame in frames)


def killed_at(call, study_dir, to):
    """Archive ``study_dir`` in a process that is killed at a call. Whether it got there."""
    if (process := os.fork()) == 0:
        files.os = Instrument(Plan(str(to), at=call, signal=signal.SIGKILL))
        write_archive(study_dir, to)
        os._exit(0)
    return os.waitpid(process, 0)[1] == signal.SIGKILL


def test_a_kill_at_any_file_call_leaves_the_old_or_the_new_archive(old_and_new, tmp_path):
    new, states = old_and_new[1], []
    for one in old_and_new:
        assert write_archive(one, tmp_path / f"whole/{one.name}/s") == []
        states.append(seen(tmp_path / f"whole/{one.name}/s"))
    found = []
    for call in count(1):
        to = shutil.copytree(tmp_path / "whole/old/s", tmp_path / str(call) / "s")
        if not killed_at(call, new, to):
            break
        assert [*check_study(to)] == []
        found.append(states.index(seen(to)))
        assert write_archive(new, to) == []
        assert sorted(os.listdir(to)) == ["cells.parquet", "metrics.parquet", "probes.parquet"]
        assert seen(to) == states[1]
    assert found == sorted(found)
    assert set(found) == {0, 1}


def test_two_commands_at_once_leave_a_whole_archive(old_and_new, tmp_path):
    """Each process begins to write while the other one does, a few times."""
    for number in range(6):
        to, started = tmp_path / f"both{number}/s", []
        for one in old_and_new:
            if (process := os.fork()) == 0:
                for _ in range(5):
                    write_archive(one, to)
                os._exit(0)
            started.append(process)
        assert [os.waitpid(process, 0)[1] for process in started] == [0, 0]
        assert [*check_study(to)] == []
        assert not [name for name in os.listdir(to) if name.count(".") > 1 or "partial" in name]


def test_an_archive_of_an_earlier_version_is_named_as_one(archived, tmp_path, study_cli):
    """Its files have no hashes."""
    copy = Path(shutil.copytree(archived, tmp_path / "mine"))
    pq.write_table(pq.read_table(copy / FILES[0]).replace_schema_metadata(), copy / FILES[0])
    said = study_cli("check", str(copy))
    assert said.code == 1
    assert "of an earlier version" in said.out + said.err
    assert "damaged" not in said.out + said.err


@pytest.mark.parametrize("strange", ["../x", "/tmp/x", "a/b", "..", ""])
def test_an_id_that_is_a_path_is_refused(archived, tmp_path, strange, study_cli):
    copy = Path(shutil.copytree(archived, tmp_path / "mine"))
    cells = pq.read_table(copy / FILES[0])
    ids = [strange, *cells["cell_id"].to_pylist()[1:]]
    about = json.loads(cells.schema.metadata[b"study"])
    about.pop("cells")
    place = cells.schema.get_field_index("cell_id")
    (copy / FILES[0]).write_bytes(with_hashes(cells.set_column(place, "cell_id", [ids]), about))
    for words in (["check"], ["status"], ["report", "--to", str(tmp_path / "page")]):
        ran = study_cli(words[0], str(copy), *words[1:])
        assert ran.code in (1, 2)
        assert "is not the name of one folder" in ran.out + ran.err


def test_every_flipped_bit_is_seen(old_and_new, tmp_path):
    to = tmp_path / "to"
    write_archive(old_and_new[0], to)
    for path in to.glob("*.parquet"):
        content = path.read_bytes()
        for place in np.linspace(0, 1, 60, endpoint=False):
            flip(path, place)
            with pytest.raises(StudyError, match="damaged"):
                seen(to)
            path.write_bytes(content)


def test_the_command_archives_and_says_what_it_left_out(study_dir, tmp_path, works):
    copy = Path(shutil.copytree(study_dir, tmp_path / "copy"))
    first = cell_folders(copy)[0]
    path = first / "record.json"
    path.write_text(path.read_text().replace('"status": "complete"', '"status": "interrupted"'))
    ran = works("archive", copy, "--to", tmp_path / "a")
    said = ran.out + ran.err
    assert f"left out, because they have not ended: {first.name}" in said
    assert f"{tmp_path / 'a'}: 3 cells, 0." in said
    assert {record["study"] for record in load_records(tmp_path / "a")} == {"a"}
