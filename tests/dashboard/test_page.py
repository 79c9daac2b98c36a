"""What the page says of a study: its cells, its settings, its findings, and what is damaged."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from study.analysis import load_tables
from study.dashboard.document import Page
from study.dashboard.studies import read_studies
from study.dashboard.values import Measured
from study.errors import StudyError
from study.report import answer, answer_table, asked
from study.report.text import minus, plain
from tests.store.small_cells import flip

from .conftest import LAYER, begin_cell, one_step, written

NORM = Measured("adapter_grad", "norm", "train")


def shown(*folders: Path) -> dict[str, Any]:
    """What the page shows of one study, as the browser reads it."""
    [found] = json.loads(Page(read_studies(folders), live=False).text())["pages"]
    return found


def test_the_findings_are_the_report(trained: Path) -> None:
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


def test_the_main_settings_are_one_short_line_and_the_rest_is_elsewhere(
    trained: Path, jsonl: Path
) -> None:
    found = shown(trained)["configuration"]
    assert found["main"] == (
        f"a tiny random Llama, {jsonl}, several optimizers, several learning rates, α = 16, "
        "batch 2 × 24 tokens, 2 seeds, 2 steps"
    )
    assert found["rest"]["init"] == "kaiming"
    assert not {"lr", "rank"} & set(found["rest"])


def test_a_running_cell_shows_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study in"):
        read_studies([tmp_path])
    writer = begin_cell(tmp_path, "aaa")
    one_step(writer, 0, {LAYER: 1.0})
    one_step(writer, 3, {LAYER: 2.0})
    page = shown(tmp_path)
    [cell] = page["cells"]
    assert (cell["status"], cell["steps_done"], cell["probed"]) == ("running", 3, 2)
    assert cell["curves"]["loss"] == {"step": [0, 3], "value": pytest.approx([2.0, 1.7])}
    assert page["report"] == "No answer yet: two ranks are needed."
    writer.close("failed", error="x")


def test_a_damaged_cell_is_unreadable_and_the_others_are_shown(tmp_path: Path) -> None:
    folder = written(tmp_path, "a", "b")
    flip(folder / "cells/b/metrics.parquet")
    page = Page(read_studies([folder]), live=False)
    [shown] = page.overview["pages"]
    assert [cell["cell_id"] for cell in shown["cells"]] == ["a"]
    [lost] = shown["unreadable"]
    assert lost["cell_id"] == "b"
    assert "\n" not in lost["note"]
    assert shown["counts"]["unreadable"] == 1
    assert b'"cell":"a"' in page.message(NORM)
    assert b'"cell":"b"' not in page.message(NORM)
