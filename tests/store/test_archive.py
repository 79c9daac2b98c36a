"""An archived study is the study: the same tables, exponents and records."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

from study.cli import cli
from study.errors import StudyError
from study.report import current_tables
from study.store import CellWriter, cell_folders, load_measured, load_records
from study.store.archive import ARCHIVE, NOTE
from study.store.archiving import write_archive
from study.store.integrity import check_study

TABLES = ("metrics", "probes", "truncations", "exponents", "stable", "rates", "losses")
FROM_PLACES = ["results_dir", "plots_dir", "name"]


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory, jsonl: Path) -> Path:
    """Four cells on the tiny base, with truncations."""
    results = tmp_path_factory.mktemp("trained") / "results"
    sweep = ["adapter.rank=2,8", "seed=0,1"]
    small = ["model=tiny", "data=jsonl", f"data.path={jsonl}", "data.sequence_length=32"]
    small += ["data.heldout=6", "train.steps=2", "train.batch_size=2", "probes.truncations=[1]"]
    from study.sweeps import app

    app.main(["-m", "name=mine", f"results_dir={results}", "tracker=none", *small, *sweep])
    return results / "mine"


@pytest.fixture(scope="module")
def archived(study_dir: Path) -> Path:
    to = study_dir.parents[1] / "kept/mine"
    written = write_archive(study_dir, to, "pictures")
    assert (written.cells, written.left_out) == (4, ())
    return to


def test_tables_and_exponents_of_an_archive_are_those_of_the_study(
    study_dir: Path, archived: Path
) -> None:
    assert not (archived / "cells").exists()
    ended = current_tables(study_dir, lambda line: None)
    found = current_tables(archived, lambda line: None)
    for name in ("cells", *TABLES):
        assert len(getattr(found, name)) or name == "rates"
        pd.testing.assert_frame_equal(getattr(found, name), getattr(ended, name), check_exact=True)


def test_an_archive_names_its_own_folders_and_is_whole(study_dir: Path, archived: Path) -> None:
    assert [*check_study(archived)] == []
    before = {record["cell_id"]: record for record in load_records(study_dir)}
    for record in load_records(archived):
        assert record["config"]["results_dir"] == archived.parent.as_posix()
        assert record["config"]["plots_dir"] == "pictures"
        for one in (record, before[record["cell_id"]]):
            for key in ("tables", "adapter"):
                one.pop(key)
            for key in FROM_PLACES:
                one["config"].pop(key)
        assert record == before[record["cell_id"]]
        config = (archived / "cells" / record["cell_id"] / "config.yaml").read_text()
        assert "plots_dir: pictures\n" in config
        assert str(study_dir.parent) not in config


def test_the_same_study_gives_the_same_bytes(archived: Path) -> None:
    first = (archived / ARCHIVE).read_bytes()
    assert write_archive(archived, archived, "pictures").path.read_bytes() == first


def test_a_new_archive_replaces_the_cells_of_the_old_one_and_no_others(
    archived: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "mine"
    copy.mkdir()
    (copy / ARCHIVE).write_bytes((archived / ARCHIVE).read_bytes())
    old = cell_folders(copy)
    assert len(old) == 4
    own = copy / "cells/own"
    own.mkdir()
    (old[0] / "record.json").rename(own / "record.json")
    fewer = tmp_path / "fewer"
    for folder in old[1:3]:
        (fewer / "cells").mkdir(parents=True, exist_ok=True)
        folder.rename(fewer / "cells" / folder.name)
    write_archive(fewer, copy)
    assert {path.name for path in cell_folders(copy)} == {old[1].name, old[2].name, "own"}
    assert (own / "record.json").exists()


def tar_of(**files: bytes) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return bytes(pa.Codec("zstd").compress(whole.getvalue()))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tar_of(**{"../../x/record.json": b"{}"}), "it holds '../../x/record.json'"),
        (tar_of(**{"/tmp/record.json": b"{}"}), "it holds '/tmp/record.json'"),
        (tar_of(**{"a/run.sh": b"x"}), r"it holds 'a/run\.sh'"),
        (b"text", "is damaged"),
        (tar_of(**{"a/record.json": bytes(9000)})[:60], "is damaged"),
    ],
)
def test_a_strangers_archive_gets_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ARCHIVE).write_bytes(content)
    with pytest.raises(StudyError, match=why) as raised:
        load_measured(tmp_path / "s")
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "s/cells" / NOTE).exists()
    assert not (tmp_path / "x").exists()


def test_the_command_archives_and_says_what_it_left_out(study_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study_dir, tmp_path / "copy")
    record = load_records(copy)[0] | {"cell_id": "stopped"}
    CellWriter.open(copy / "cells/stopped", "", record).interrupt()
    ran = CliRunner().invoke(cli, ["archive", str(copy), "--to", str(tmp_path / "a")])
    assert ran.exit_code == 0
    assert "left out, because they have not ended: stopped" in ran.output
    assert f"{tmp_path / 'a' / ARCHIVE}: 4 cells, 0.0 MB" in ran.output
    kept = json.loads((cell_folders(tmp_path / "a")[0] / "record.json").read_text())
    assert kept["study"] == "a"


def test_a_study_without_an_ended_cell_is_not_archived(study_dir: Path, tmp_path: Path) -> None:
    record = load_records(study_dir)[0] | {"cell_id": "only"}
    CellWriter.open(tmp_path / "s/cells/only", "", record).interrupt()
    with pytest.raises(StudyError, match=r"no cell of .* has ended"):
        write_archive(tmp_path / "s", tmp_path / "to")
    with pytest.raises(StudyError, match="no study in"):
        write_archive(tmp_path / "nothing", tmp_path / "to")
