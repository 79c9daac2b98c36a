"""A browser, a study trained on the tiny base, and a writer of cells with given values."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from playwright.sync_api import Browser, Page, sync_playwright

from study.dashboard.document import export
from study.store import CellWriter
from study.sweeps import app as hydra_app
from tests.forked import STUDY, Forked
from tests.store.small_cells import CONFIG, RECORD, opened

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
FLAGS += " --disable-background-networking --disable-component-update"
LAYER = "model.layers.0.q_proj"
PATIENCE = 300.0
"""Seconds after which what a test waits for does not come. The machine may be busy."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium. Without it, CI fails; elsewhere the tests are skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(
                "no chromium on PATH, and CI must not pass without it: apt-get install chromium"
            )
        pytest.skip("no chromium on PATH: the dashboard's page is tested in it")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield launched
        launched.close()


class Servers:
    """``study dashboard``, each in its own process, with the state of a user of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.running: list[Forked] = []

    def start(self, study: Path, *options: str, first: str = "") -> str:
        """Start a server after the code ``first``, and return the address that it prints."""
        variables = {**os.environ, "XDG_STATE_HOME": str(self.state)}
        command = ["dashboard", str(study), *options]
        self.running.append(Forked(f"{first}\n{STUDY}", command, study, variables))
        line = self.running[-1].first_line()
        assert line.startswith("http://"), line
        return line.split()[0]

    def stop(self) -> int:
        """Interrupt the last server, as Ctrl-C does, and return its exit code."""
        process = self.running.pop()
        process.send(signal.SIGINT)
        return process.wait().returncode


@pytest.fixture
def servers(tmp_path) -> Iterator[Servers]:
    found = Servers(tmp_path / "state")
    yield found
    for process in found.running:
        process.kill()


class Watched:
    """A page, with its requests, and its errors and dialogs."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._asked)

    def _said(self, line: Any) -> None:
        if line.type in ("error", "warning"):
            self.errors.append(line.text)

    def _asked(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, url: str) -> Page:
        """Open an address and wait until the charts are drawn."""
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]")
        return self.page

    def show(self, choices: str = "") -> Page:
        """Make exactly these choices on the open page, as its address would: much faster."""
        self.page.evaluate(
            """async address => {
                history.replaceState(null, "", "#" + address);
                choices.read();
                await render();
            }""",
            choices,
        )
        return self.page

    def until(self, expression: str) -> float:
        """Wait until a JavaScript expression is true. Returns the seconds waited.

        Playwright's own wait evaluates text inside the page, which the page's policy forbids.
        """
        began = time.monotonic()
        while not self.page.evaluate(expression):
            waited = time.monotonic() - began
            assert waited < PATIENCE, f"{expression} does not hold"
            self.page.wait_for_timeout(50)
        return time.monotonic() - began

    def choose(self, name: str, value: str) -> None:
        """Choose from a list of the page, and wait until it is drawn again."""
        self.page.select_option(f"#{name}", value)
        self.page.evaluate("rendering")


@pytest.fixture(scope="module")
def opener(browser) -> Iterator[Callable[..., Watched]]:
    """A page in a context of its own; the options are those of the context."""
    contexts = []

    def opened(**options):
        size = {"width": 1280, "height": 800}
        contexts.append(
            browser.new_context(**{"viewport": size, "accept_downloads": True} | options)
        )
        return Watched(contexts[-1].new_page())

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def watched(opener) -> Watched:
    return opener()


@pytest.fixture
def offline(opener) -> Watched:
    return opener(offline=True)


@pytest.fixture(scope="session")
def trained(jsonl, tmp_path_factory) -> Path:
    """18 cells over ranks, rules, optimizers and seeds; and 2 that diverge at a higher rate."""
    results = tmp_path_factory.mktemp("dashboard") / "results"
    small = f"-m model=tiny data=file data.path={jsonl} data.sequence_length=24 data.heldout=2 "
    small += "train.steps=2 train.batch_size=2 probes.steps=null probes.every=1 "
    small += f"probes.batch=[train,heldout] results_dir={results} name=small "
    for sweep in (
        "adapter.rank=2,4,8 adapter.scaling=lora,rslora optimizer=sgd seed=0,1",
        "adapter.rank=2,4,8 adapter.scaling=lora,rslora optimizer=adamw",
        "adapter.rank=2,4 adapter.scaling=rslora optimizer=sgd optimizer.lr=1e30",
    ):
        GlobalHydra.instance().clear()
        hydra_app.main((small + sweep).split())
    return results / "small"


@pytest.fixture(scope="session")
def file(trained, tmp_path_factory) -> Path:
    """The page of the trained study, with everything."""
    path = tmp_path_factory.mktemp("export") / "small.html"
    inside, there = export([trained], path)
    assert inside == there > 50
    return path


def begin_cell(study: Path, cell_id: str, rank: int = 4, seed: int = 0) -> CellWriter:
    """The writer of a running cell in the folder ``study``."""
    adapter = CONFIG["adapter"] | {"rank": rank, "scaling": "lora", "exponent": None}
    config = CONFIG | {"adapter": adapter, "train": CONFIG["train"] | {"steps": 9}, "seed": seed}
    record = RECORD | {"cell_id": cell_id, "study": study.name, "config": config}
    return opened(study / "cells" / cell_id, "", record)


def one_step(
    writer: CellWriter, step: int, norms: dict[str, float], site: str = "adapter_grad"
) -> None:
    """Append a loss, and a norm per layer."""
    place = {"step": step, "site": site, "batch": "train", "nonfinite": 0.0}
    rows = [
        {**place, "layer": name, "block": 0 if "." in name else -1}
        | {"kind": name.rpartition(".")[2], "norm": norm}
        for name, norm in norms.items()
    ]
    writer.append("probes", pd.DataFrame(rows))
    metrics = {"step": step, "tokens": 9, "loss": 2.0 - 0.1 * step, "lr": 1e-4}
    writer.append("metrics", pd.DataFrame([metrics]))


def written(folder: Path, *cells: str) -> Path:
    """Complete cells of the ranks 2, 3 and so on. Returns ``folder``."""
    for rank, name in enumerate(cells, 2):
        writer = begin_cell(folder, name, rank)
        for step in range(2):
            one_step(writer, step, {LAYER: float(rank)})
        writer.close("complete", steps_done=1)
    return folder
