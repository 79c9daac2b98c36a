"""What the page says of a study and of several, its head while sweeps run, and its command."""

import itertools
import json
import re
from html import unescape

import numpy as np
import pytest
from starlette.testclient import TestClient

from study.analysis import load_tables
from study.analysis.text import minus, plain
from study.cli.dashboard import check_place
from study.dashboard import document
from study.dashboard.document import Page, export
from study.dashboard.server import application
from study.dashboard.studies import names_of, read_studies
from study.errors import StudyError
from study.report import answer, answer_table, asked

from .conftest import LAYER, begin_cell, one_step


def shown(folder):
    """What the page shows of one study, as the browser reads it."""
    [found] = json.loads(Page(read_studies([folder]), live=False).text())["pages"]
    return found


def test_the_findings_are_the_report(trained):
    """Its question, sentences, table and caveats, and the figure of its question."""
    tables, page = load_tables(trained), shown(trained)
    text = unescape(re.sub("<[^>]*>", "", page["report"]))
    assert asked(tables).asks in text
    for sentence in answer(tables):
        assert minus(sentence) in text
    for row in answer_table(tables).rows:
        assert all(minus(plain(entry)) in text for entry in row.values())
    assert "Caveats" in text
    pictures = re.findall(r"<summary>Figure: (.*)</summary>", page["report"])
    assert pictures == ["loss against rank", "learning rate basins"]
    assert page["report"].count("<img") == 3


def test_the_main_settings_are_one_short_line_and_the_rest_is_elsewhere(trained, jsonl):
    found = shown(trained)["configuration"]
    assert found["main"] == (
        f"a tiny random Llama, {jsonl.name}, several optimizers, several learning rates, α = 16, "
        "batch 2 × 24 tokens, 2 seeds, 2 steps"
    )
    assert found["rest"]["init"] == "kaiming"
    assert not {"lr", "rank"} & set(found["rest"])


# ---- several studies


def of_slope(folder, slope, ranks=(4, 8, 16)):
    """A study whose gradient norms follow ``rank ** slope``, over three seeds."""
    draw = np.random.default_rng(0)
    for rank, seed in itertools.product(ranks, range(3)):
        writer = begin_cell(folder, f"{rank}-{seed}", rank, seed)
        norm = float(rank**slope * np.exp(0.01 * draw.standard_normal()))
        one_step(writer, 0, {LAYER: norm, "model": norm})
        writer.close("complete", steps_done=0)
    return folder


@pytest.fixture
def pair(tmp_path):
    """Two studies that share their cell ids."""
    return [of_slope(tmp_path / "first", -0.5), of_slope(tmp_path / "second", 0.0, (4, 8, 32))]


def test_too_many_cells_for_a_file_are_refused_at_once(tmp_path, monkeypatch):
    of_slope(tmp_path / "s", 0.5, ranks=(4,))
    monkeypatch.setattr(document, "MOST_CELLS", 2)
    with pytest.raises(StudyError, match="3 cells are too many for one file: name studies of at"):
        export([tmp_path / "s"], tmp_path / "page.html")


def test_one_study_at_a_time_and_a_table_of_all(offline, pair, works, refused):
    assert "--wandb takes one study, not 2: run it for each" in refused(
        "dashboard", *pair, "--wandb"
    )
    file = pair[0].parent / "both.html"
    works("dashboard", *pair, "--export", file)
    assert file.stat().st_size < 10e6
    page = offline.open(file.as_uri() + "#tab=layers")
    ranks = "[page.overview.study, page.view.ranks, page.overview.cells.length]"
    assert page.evaluate(ranks) == ["first", [4, 8, 16], 9]
    offline.choose("study-choice", "second")
    assert page.locator("h1").inner_text() == "second"
    assert page.evaluate(ranks) == ["second", [4, 8, 32], 9], "its own axes and seeds"
    assert "LoRA 0.0" in page.locator("#fit-title").inner_text()
    alone = shown(pair[1])
    for name in ("counts", "configuration", "report"):
        assert page.evaluate(f"page.overview.{name}") == alone[name]
    page.go_back()
    offline.until("page.overview.study === 'first'")
    assert "LoRA −0.5" in page.locator("#fit-title").inner_text()
    page.locator("#tabs [data-tab=compare]").click()
    page.evaluate("rendering")
    assert page.locator("#compare-sentences").inner_text().startswith("A = first, B = second: ")
    assert page.evaluate("document.querySelector('#compare-sentences img').naturalWidth") > 800
    numbers, settings = page.locator("#compare-tables table").all_inner_texts()
    assert re.search(r"rank\s+4, 8, 16\s+4, 8, 32", settings)
    assert "AdamW, LoRA\tgradient norm over all adapters" in numbers
    assert "0.500 [0.500, 0.500]" in numbers, "paired: the draws are the same in both"
    assert offline.errors == []


def test_studies_of_one_name_are_told_apart_and_one_given_twice_is_refused(tmp_path):
    folders = [of_slope(tmp_path / place / "same", 0.0, (4,)) for place in ("a", "b")]
    assert names_of(folders) == [str(folder) for folder in folders]
    with pytest.raises(StudyError, match="same is given twice: give each study once"):
        read_studies([folders[0], folders[0]])


# ---- progress


def test_the_head_shows_cells_done_waiting_and_the_time_left(offline, pair):
    found = iter([(2, 30.0), (4, 190.0)])
    app = application(pair, "t", lambda folder: next(found))
    told = TestClient(app, base_url="http://127.0.0.1/t").get("/progress").json()
    assert told["waiting"] == 6, "of both sweeps"
    assert 150 < told["seconds_left"] <= 190, "until the last one ends"
    file = pair[0].parent / "one.html"
    export(pair[:1], file)
    page = offline.open(file.as_uri())
    assert page.locator("#progress-text").inner_text() == "9 of 9 cells done"
    page.evaluate("page.ahead = { waiting: 6, seconds_left: 190 }; renderProgress(page.overview);")
    assert page.locator("#progress-text").inner_text() == "9 of 15 cells done · 0:03:10 left"
    assert "○ 6 waiting" in page.locator("#counts").inner_text()
    assert page.evaluate("byId('bar').position") == 0.6


# ---- a study without a cell


def write_record(study_dir):
    (study_dir / "cells/a").mkdir(parents=True)
    (study_dir / "cells/a/record.json").write_text("{}")


def test_it_does_not_serve_where_no_cell_will_come(tmp_path):
    (tmp_path / "file").write_text("")
    write_record(tmp_path / "results/mine")
    for place in ("file", "file/below", "results"):
        with pytest.raises(StudyError, match="no study in"):
            check_place(tmp_path / place)


def test_a_study_without_a_cell_is_served_at_once(tmp_path, monkeypatch, works):
    study_dir = tmp_path / "results/mine"
    served = []
    monkeypatch.setattr(
        "study.dashboard.server.serve", lambda studies, *_: served.append(studies[0])
    )
    ran = works("dashboard", study_dir)
    assert served == [study_dir]
    assert ran.err.count("waiting for the first cell (no study in") == 1
