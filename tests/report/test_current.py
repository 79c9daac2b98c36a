"""What `study report` prints; and what is computed from the cells follows them."""

import errno
import re
import shutil

import pandas as pd
import pytest
from click.testing import CliRunner

import study
from study.analysis import load_tables
from study.cli import cli
from study.report import answer
from study.store import files, load_records, write_table
from tests.faults.instrument import Instrument, Plan

pytestmark = pytest.mark.usefixtures("few_figures")


@pytest.fixture
def small(on_disk):
    return on_disk(ranks=(4, 32), seeds=(0,))


def test_a_deleted_cell_is_gone_from_tables_report_and_figures(small, works, study_cli):
    """Damage in what is not computed from the cells says how to mend it."""
    plots, kept = small.parents[1] / "plots/known", []
    works("analyze", small)
    works("report", small)
    assert set(pd.read_parquet(small / "exponents.parquet")["rank_min"]) == {4.0}
    assert set(study.load(str(small)).exponents["rank_min"]) == {4.0}
    assert (plots / "grad_norm_vs_rank.png").exists()
    records = load_records(small)
    for record in records:
        if record["config"]["adapter"]["rank"] == 4:
            shutil.rmtree(small / "cells" / record["cell_id"])
        else:
            kept.append(record["cell_id"])
    works("report", small)
    assert study.load(str(small)).exponents.empty
    text = (small / "report.md").read_text()
    assert "ranks 32;" in text
    assert "grad_norm_vs_rank" not in text
    assert not list(plots.glob("grad_norm_vs_rank.*"))
    ids = ["free x", *(record["cell_id"] for record in records)]
    write_table(small / "distances.parquet", pd.DataFrame({"cell_id": ids, "value": 1.0}))
    assert sorted(study.load(str(small)).distances["cell_id"]) == sorted(kept)
    (small / "distances.parquet").write_bytes(b"PAR1")
    ran = study_cli("analyze", str(small))
    assert ran.code == 2
    assert f"delete it and run `study distances {small}`" in ran.err


@pytest.mark.parametrize("command", ["analyze", "figures", "report"])
def test_a_disk_that_cannot_be_written_is_seen_first(small, monkeypatch, command, refused):
    disk = Plan(str(small.parents[1]), at=1, errno=errno.EROFS, for_good=True)
    monkeypatch.setattr(files, "os", Instrument(disk))
    line = refused(command, small)
    assert "Read-only file system" in line, "it does not begin to analyze"


def test_a_report_ends_with_what_was_found_and_what_to_open(on_disk, caplog, monkeypatch):
    folder = on_disk(ranks=(4, 32), seeds=(0, 1, 2))
    monkeypatch.setattr("shutil.which", lambda name: None)  # after make study, without activate
    monkeypatch.setattr("sys.argv", [".venv/bin/study"])
    text = CliRunner().invoke(cli, ["report", str(folder)], catch_exceptions=False).output
    said = [one.message for one in caplog.records if one.name.startswith("study")]
    assert said == [], "no list of figures that could not be drawn"
    assert not re.search(r"no figure|\brows?\b|\.parquet|nan", text)
    lines = text.splitlines()
    assert lines[0].startswith("analyzing the cells")
    assert lines[-2:] == [
        f"# open in a browser: {folder / 'report.html'}",
        f".venv/bin/study dashboard {folder}    # every layer, in a browser",
    ]
    unwrapped = re.sub(r"\n  ", " ", text)
    assert re.search("# figure: .*plots/known/grad_norm_vs_rank.png", text)
    assert "×0." in text.split("# figure: ")[1], "the table"
    sentences = [line.removeprefix("- ") for line in unwrapped.splitlines() if line[:2] == "- "]
    assert sentences == answer(load_tables(folder))
    assert max(len(line) for line in lines[1:-2] if not line.startswith("# figure")) <= 100
