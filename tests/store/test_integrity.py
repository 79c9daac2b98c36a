"""``study check`` names every file that changed; ``study train`` begins such a cell again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study.errors import StudyError
from study.store import load_measured, write_table
from study.store.checkpoints import Checkpoint, save
from tests.store.small_cells import append, flip

STOPPED = "cells/stopped/checkpoints/step-00000001"


@pytest.fixture
def study_dir(tmp_path, begin):
    """``ended`` and ``other`` are complete, ``stopped`` is interrupted and has checkpoints."""
    ended = begin("ended", 3)
    (ended.folder / "adapter").mkdir()
    (ended.folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(100))
    ended.close("complete", steps_done=2)
    begin("other", 3).close("complete", steps_done=2)
    stopped = begin("stopped")
    for step in (0, 1):
        weights = {"weights/A": np.full(100, 0.5, "f4")}
        append(stopped, range(step, step + 1))
        save(stopped.folder, Checkpoint(step + 1, weights, {}), stopped.sync)
    stopped.interrupt()
    distances = pd.DataFrame({"cell_id": "ended", "value": np.linspace(0, 1, 500)})
    write_table(tmp_path / "distances.parquet", distances)
    return tmp_path


BITS = {
    "cells/ended/config.yaml": "cells/ended: config.yaml is damaged: its size or hash",
    "cells/ended/metrics.parquet": "cells/ended: metrics.parquet is damaged: its size or hash",
    "cells/ended/adapter/adapter_model.safetensors": "cells/ended: adapter_model.safetensors is",
    f"{STOPPED}.safetensors": f"{STOPPED}.json: Damaged: step-00000001.safetensors is",
    "distances.parquet": "distances.parquet: distances.parquet is damaged",
}
RECORDS = {
    "cells/ended: record.json is damaged": lambda record: record.write_bytes(b""),
    "cells/ended: record.json is missing": Path.unlink,
}


def check_names(study_cli, study_dir, line):
    ran = study_cli("check", str(study_dir))
    assert ran.code == 1
    found, summary = (ran.out + ran.err).splitlines()
    assert found.startswith(f"{study_dir}/{line}")
    assert summary == "3 cells: 1 problem"


@pytest.mark.parametrize("file", BITS)
def test_a_changed_bit_is_named(study_dir, file, works, study_cli):
    assert works("check", study_dir).out == "3 cells: no problem\n"
    flip(study_dir / file, 0.3)
    check_names(study_cli, study_dir, BITS[file])


@pytest.mark.parametrize("line", RECORDS)
def test_a_lost_record_is_named(study_dir, line, caplog, study_cli):
    RECORDS[line](study_dir / "cells/ended/record.json")
    check_names(study_cli, study_dir, line)
    assert len(load_measured(study_dir).cells) == 2
    assert "1 of the cells" in caplog.text


@pytest.mark.parametrize("place", ["cells", "cells/ended", "aside"])
def test_a_link_in_a_study_is_refused(study_dir, place, begin, refused):
    """It may lead out of the study, which may come from a stranger."""
    path, elsewhere = study_dir / place, study_dir / "elsewhere"
    elsewhere.mkdir()
    if path.exists():
        path.rename(elsewhere / "moved")
    path.symlink_to(elsewhere / "moved")
    with pytest.raises(StudyError, match=f"{place} is a link: put the folder itself there"):
        begin("ended", 3)
    if place != "aside":
        assert "is a link" in refused("check", study_dir)


def test_a_running_cell_is_left_alone(study_dir, begin, works):
    writer = begin("running", 2)
    with (writer.folder / "metrics.arrows").open("ab") as file:
        file.write(b"a part of a row")
    works("check", study_dir)
    writer.claim.release()
