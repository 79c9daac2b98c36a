"""A browser, a study trained on the tiny base, and a writer of cells with given values."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from playwright.sync_api import Browser, Page, sync_playwright

from study.store import CellWriter
from study.sweeps import app as hydra_app
from tests.forked import STUDY, Forked

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]


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
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


class Servers:
    """``study dashboard``, each in its own process, with the state of a user of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.running: list[Forked] = []

    def start(self, study: Path, *options: str) -> str:
        """Start a server and return the address that it prints."""
        variables = {**os.environ, "XDG_STATE_HOME": str(self.state)}
        command = ["dashboard", str(study), *options]
        self.running.append(Forked(STUDY, command, study, variables))
        line = self.running[-1].first_line()
        assert line.startswith("http://"), line
        return line.split()[0]

    def stop(self) -> int:
        """Interrupt the last server, as Ctrl-C does, and return its exit code."""
        process = self.running.pop()
        process.send(signal.SIGINT)
        return process.wait().returncode


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
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
        page.on("request", lambda request: self.requests.append(request.url))
        page.on(
            "console",
            lambda line: (
                self.errors.append(line.text) if line.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "dialog",
            lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()),
        )

    def open(self, url: str) -> Page:
        """Open an address and wait until the charts are drawn."""
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)
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

    def until(self, expression: str, seconds: float = 30) -> float:
        """Wait until a JavaScript expression is true. Returns the seconds waited.

        Playwright's own wait evaluates text inside the page, which the page's policy forbids.
        """
        began = time.monotonic()
        while not self.page.evaluate(expression):
            waited = time.monotonic() - began
            assert waited < seconds, f"{expression} does not hold after {seconds} s"
            self.page.wait_for_timeout(50)
        return time.monotonic() - began


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    yield Watched(context.new_page())
    context.close()


@pytest.fixture
def offline(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 1000}, accept_downloads=True, offline=True
    )
    yield Watched(context.new_page())
    context.close()


@pytest.fixture(scope="session")
def trained(jsonl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 cells over ranks, rules, optimizers and seeds; and 2 that diverge at a higher rate."""
    results = tmp_path_factory.mktemp("dashboard") / "results"
    small = [
        "model=tiny",
        "data=file",
        f"data.path={jsonl}",
        "data.sequence_length=24",
        "data.heldout=2",
    ]
    small += [
        "train.steps=2",
        "train.batch_size=2",
        "probes.steps=null",
        "probes.every=1",
        "probes.batch=[train,heldout]",
    ]
    small += [f"results_dir={results}", "name=small"]
    ranks = ["adapter.rank=2,4,8", "adapter.scaling=lora,rslora"]
    sweeps = [[*ranks, "optimizer=sgd", "seed=0,1"], [*ranks, "optimizer=adamw"]]
    sweeps += [["adapter.rank=2,4", "adapter.scaling=rslora", "optimizer=sgd", "optimizer.lr=1e30"]]
    argv = sys.argv
    try:
        for sweep in sweeps:
            GlobalHydra.instance().clear()
            hydra_app.main(["-m", *small, *sweep])
    finally:
        sys.argv = argv
    return results / "small"


@pytest.fixture
def by_hand(tmp_path: Path) -> Callable[..., CellWriter]:
    """``by_hand("id", rank=4)`` returns the writer of a running cell in ``results/odd``."""

    def begin(cell_id: str, **about: Any) -> CellWriter:
        return begin_cell(tmp_path / "results/odd", cell_id, **about)

    return begin


@pytest.fixture
def one_step() -> Callable[[CellWriter, int, dict[str, float]], None]:
    """``one_step(writer, step, norms)`` appends a loss, and a gradient norm per layer."""

    def append(writer: CellWriter, step: int, norms: dict[str, float]) -> None:
        rows = [
            {
                "step": step,
                "layer": name,
                "block": 0,
                "kind": name.rpartition(".")[2],
                "site": "adapter_grad",
            }
            | {"batch": "train", "norm": norm, "nonfinite": 0.0}
            for name, norm in norms.items()
        ]
        writer.append("probes", pd.DataFrame(rows))
        writer.append(
            "metrics",
            pd.DataFrame([{"step": step, "tokens": 9, "loss": 2.0 - 0.1 * step, "lr": 1e-4}]),
        )

    return append


def begin_cell(study: Path, cell_id: str, **about: Any) -> CellWriter:
    """The writer of a running cell in the folder ``study``."""
    record = {
        "model": "known",
        "data": "pydoc",
        "gamma": 1.0,
        "device": "cpu",
        "study": study.name,
    } | about
    config = {
        "adapter": {
            "rank": about.get("rank", 4),
            "scaling": about.get("scaling", "lora"),
            "exponent": None,
        }
        | {"alpha": 16.0, "init": "kaiming", "dropout": 0.0, "targets": "all-linear"},
        "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.0},
        "train": {
            "steps": 9,
            "batch_size": 2,
            "accumulation": 1,
            "clip": None,
            "schedule": "constant",
            "warmup": 0,
        },
        "data": {"seed": 0, "sequence_length": 48},
        "seed": about.get("seed", 0),
        "precision": "float32",
    }
    return CellWriter.open(
        study / "cells" / cell_id,
        "",
        record | {"cell_id": cell_id, "config": config},
    )
