"""Several studies on one page, and the head of the page while sweeps run."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from study import cli
from study.dashboard import document
from study.dashboard.document import Page, export
from study.dashboard.server import application
from study.dashboard.studies import names_of, read_studies
from study.dashboard.values import Measured
from study.errors import StudyError

from .conftest import LAYER, Watched, begin_cell, one_step

NORM = Measured("adapter_grad", "norm", "train")


def of_slope(folder: Path, slope: float, ranks: tuple[int, ...] = (4, 8, 16)) -> Path:
    """A study whose gradient norms follow ``rank ** slope``, over three seeds."""
    draw = np.random.default_rng(0)
    for rank, seed in itertools.product(ranks, range(3)):
        writer = begin_cell(folder, f"{rank}-{seed}", rank, seed)
        norm = float(rank**slope * np.exp(0.01 * draw.standard_normal()))
        one_step(writer, 0, {LAYER: norm, "model": norm})
        writer.close("complete", steps_done=0)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two studies that share their cell ids."""
    return [of_slope(tmp_path / "first", -0.5), of_slope(tmp_path / "second", 0.0, (4, 8, 32))]


def test_too_many_cells_for_a_file_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_slope(tmp_path / "s", 0.5, ranks=(4,))
    monkeypatch.setattr(document, "MOST_CELLS", 2)
    with pytest.raises(StudyError, match="3 cells are too many for one file: name studies of at"):
        export([tmp_path / "s"], tmp_path / "page.html")


def test_one_study_at_a_time_and_a_table_of_all(offline: Watched, pair: list[Path]) -> None:
    file = pair[0].parent / "both.html"
    export(pair, file)
    page = offline.open(file.as_uri() + "#tab=layers")
    ranks = "[page.overview.study, page.view.ranks, page.overview.cells.length]"
    assert page.evaluate(ranks) == ["first", [4, 8, 16], 9]
    offline.choose("study-choice", "second")
    assert page.locator("h1").inner_text() == "second"
    assert page.evaluate(ranks) == ["second", [4, 8, 32], 9], "its own axes and seeds"
    assert "LoRA 0.0" in page.locator("#fit-title").inner_text()
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


def test_each_study_keeps_the_numbers_of_its_own_page(pair: list[Path]) -> None:
    page = Page(read_studies(pair), live=False)
    message = page.message(NORM)
    for key in ("0: 4-1", "1: 4-1", "1: 32-0"):
        assert f'"cell":"{key}"'.encode() in message
    assert b"0: 32-0" not in message
    for own, folder in zip(page.overview["pages"], pair, strict=True):
        [alone] = Page(read_studies([folder]), live=False).overview["pages"]
        for name in ("counts", "configuration", "report"):
            assert own[name] == alone[name]


def test_studies_of_one_name_are_told_apart_and_one_given_twice_is_refused(tmp_path: Path) -> None:
    folders = [of_slope(tmp_path / place / "same", 0.0, (4,)) for place in ("a", "b")]
    assert names_of(folders) == [str(folder) for folder in folders]
    with pytest.raises(StudyError, match="same is given twice: give each study once"):
        read_studies([folders[0], folders[0]])


def test_the_command_takes_several_studies(pair: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    done = CliRunner().invoke(cli.cli, ["dashboard", *map(str, pair), "--export", str(file)])
    assert done.exit_code == 0, done.output
    assert file.stat().st_size < 10e6
    refused = CliRunner().invoke(cli.cli, ["dashboard", *map(str, pair), "--wandb"])
    assert str(refused.exception) == "--wandb takes one study, not 2: run it for each"


# ---- progress


def test_the_head_shows_cells_done_waiting_and_the_time_left(
    offline: Watched, pair: list[Path]
) -> None:
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
