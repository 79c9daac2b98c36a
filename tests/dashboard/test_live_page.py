"""The page while a study runs: it updates without a reload and survives a server restart."""

import os

import pytest

from tests.forked import STUDY, Forked

from .conftest import LAYER, begin_cell, one_step, written

HELD = f"""
import pathlib, time
from study.store import CellWriter

append = CellWriter.append

def append_when_released(*arguments):
    while not pathlib.Path("released").exists():
        time.sleep(0.01)
    append(*arguments)

CellWriter.append = append_when_released
{STUDY}
"""
"""A study whose cells write no row before a file ``released`` is in its folder."""


def test_a_step_is_on_the_page_within_five_seconds(watched, servers, tmp_path):
    folder = tmp_path / "results/odd"
    writer = begin_cell(folder, "aaa")
    one_step(writer, 0, {LAYER: 1.0})
    address = servers.start(folder)
    page = watched.open(address)
    assert page.evaluate("document.body.dataset.tab") == "losses", "there is one rank"
    assert page.evaluate("page.overview.report") == "No answer yet: two ranks are needed."
    page = watched.show("tab=layers")
    page.evaluate("window.sameDocument = true")
    assert page.locator("#live").inner_text() == "Live: 1 cell running"
    waits = []
    for step in (1, 2, 3):
        one_step(writer, step, {LAYER: 1.0 + step})
        waits.append(
            watched.until(f"page.view?.steps.includes({step}) && page.curves[0].x.includes({step})")
        )
    assert min(waits) < 5, "the fastest of three, since a busy machine may delay one"
    assert page.evaluate("page.curves[0].y") == pytest.approx([1, 2, 3, 4], rel=1.1e-3)
    losses = page.evaluate("page.overview.cells[0].curves.loss")
    assert losses == {"step": [0, 1, 2, 3], "value": pytest.approx([2.0, 1.9, 1.8, 1.7])}

    second = begin_cell(folder, "bbb", rank=8)
    one_step(second, 0, {LAYER: 0.5})
    writer.close("complete", steps_done=3)
    second.close("failed", error="OutOfMemoryError: none left", steps_done=0)
    watched.until("page.overview.counts.complete === 1 && page.overview.counts.failed === 1")
    watched.until("document.getElementById('live').dataset.state === 'still'")
    assert page.locator("#progress-text").inner_text() == "1 of 2 cells done"
    watched.show("tab=cells")
    assert "OutOfMemoryError" in page.locator("#cells").inner_text()
    assert page.evaluate("window.sameDocument")
    assert all(url.startswith(address) for url in watched.requests)
    assert watched.errors == []


def test_a_sweep_is_followed_to_its_end_and_past_a_server_restart(
    watched, servers, jsonl, tmp_path
):
    folder = written(tmp_path / "results/odd", "aaa")
    address = servers.start(folder)
    page = watched.open(f"{address}#tab=layers")
    page.evaluate("window.sameDocument = true")

    sweep = f"train -m model=tiny data=file data.path={jsonl} data.sequence_length=24 "
    sweep += "data.heldout=2 train.steps=16 train.batch_size=2 probes.steps=null probes.every=1 "
    sweep += f"name=odd adapter.rank=4,8 pack.fold=1 results_dir={folder.parent}"
    # Held, because this small sweep may end before the page has asked twice.
    with Forked(HELD, sweep.split(), tmp_path, os.environ) as process:
        process.wait_for(lambda: len(list(folder.glob("cells/*/record.json"))) == 2)
        watched.until("page.overview.counts.running > 0")
        watched.until("page.ahead.waiting === 1")
        assert page.locator("#progress-text").inner_text().startswith("1 of 3 cells done")
        assert "1 waiting" in page.locator("#counts").inner_text()
        steps = "page.overview.cells.reduce((sum, cell) => sum + cell.probed, 0)"
        seen = page.evaluate(steps)
        (tmp_path / "released").touch()
        watched.until(f"{steps} > {seen}")

        port = int(address.split("/")[2].partition(":")[2])
        assert servers.stop() == 0
        watched.until("document.getElementById('live').dataset.state === 'gone'")
        assert process.wait().returncode == 0
    assert servers.start(folder, "--port", str(port)) == address
    watched.until("page.overview.counts.complete === 3 && page.heat.panels.length > 1")
    watched.until("document.getElementById('live').dataset.state === 'still'")
    assert page.evaluate("window.sameDocument"), "the page was not reloaded"
    assert page.evaluate("page.view.steps.length") == 17
    lost = ("ERR_CONNECTION", "Failed to load")
    assert not [error for error in watched.errors if not any(word in error for word in lost)]
