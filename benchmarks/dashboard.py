"""How large an exported page is, and how fast it opens and answers.

    python benchmarks/dashboard.py [--cells 20] [--layers 210] [--steps 200] [--keep FOLDER]

The script writes a synthetic study in which one cell diverges, exports it and opens the file in
Chromium: it waits until the charts are drawn, then uses each chooser in turn. Each line gives the
median and the maximum over ``--repeats`` fresh browsers, and the time that the page's main thread
computed. With ``--keep`` the study stays in FOLDER, or is read from there if it exists.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from playwright.sync_api import Page, sync_playwright

from study.dashboard.export import export
from study.store import CellWriter
from study.vocabulary.quantities import MEASURED, MODEL_WIDE, TRAIN, UNIONS
from study.vocabulary.scaling import gamma

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
RULES = ("lora", "rslora")
ALPHA = 16.0
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SITES = (*MEASURED, *UNIONS)
MOMENTS = {"mean_abs": 0.8, "rms": 1.0, "m4": 1.5, "max_abs": 9.0, "norm": 40.0}
"""Each statistic relative to the rms."""


def write_study(folder: Path, cells: int, layers: int, steps: int) -> None:
    """A study whose norms resemble real ones, so that the page is not smaller than a real one.

    They are power laws in the rank with drift over training and noise of some 15 % from batch to
    batch, part of it shared by all layers. The highest rank under rsLoRA diverges.
    """
    ranks = [int(rank) for rank in np.unique(np.geomspace(4, 2048, max(2, cells // 2)).round())]
    for number, (scaling, rank) in enumerate(itertools.product(RULES, ranks)):
        diverges = (scaling, rank) == ("rslora", ranks[-1])
        record = _record(f"{number:012x}", scaling, rank, steps)
        _write_cell(folder, record, layers, 3 * steps // 5 if diverges else None)


def _record(cell_id: str, scaling: str, rank: int, steps: int) -> dict[str, Any]:
    adapter = {"rank": rank, "scaling": scaling, "exponent": None, "alpha": ALPHA}
    train = {"steps": steps, "batch_size": 8, "accumulation": 1, "clip": None}
    return {
        "cell_id": cell_id,
        "study": "synthetic",
        "model": "synthetic",
        "data": "synthetic",
        "gamma": gamma(scaling, ALPHA, rank),
        "device": "cpu",
        "config": {
            "adapter": adapter | {"init": "kaiming", "dropout": 0.0, "targets": "all-linear"},
            "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.0, "eps": 1e-8},
            "train": train | {"schedule": "constant", "warmup": 0},
            "data": {"seed": 0, "sequence_length": 128},
            "seed": 0,
            "precision": "float32",
        },
    }


def _write_cell(folder: Path, record: dict[str, Any], layers: int, diverged: int | None) -> None:
    """One cell; ``diverged`` is the step at which it diverges, if it does."""
    adapter, steps = record["config"]["adapter"], record["config"]["train"]["steps"]
    draw = np.random.default_rng([adapter["rank"], len(adapter["scaling"])])
    done = steps if diverged is None else diverged + 1
    shared = 0.08 * draw.standard_normal((done, 1))
    writer = CellWriter.open(folder / "cells" / record["cell_id"], "", record)
    writer.append("probes", _probes(record, layers, shared, draw, diverged is not None))
    step = np.arange(done)
    loss = 3 - step / steps + 0.1 * draw.standard_normal(done)
    metrics = {"step": step, "loss": loss, "grad_norm": np.exp(shared[:, 0]), "lr": 1e-4}
    writer.append("metrics", pd.DataFrame(metrics))
    if diverged is None:
        writer.close("complete", steps_done=steps, seconds=60.0)
    else:
        writer.close("diverged", steps_done=diverged, diverged_step=diverged, seconds=36.0)


def _probes(
    record: dict[str, Any],
    layers: int,
    shared: np.ndarray,
    draw: np.random.Generator,
    diverged: bool,
) -> pd.DataFrame:
    """Rows of every site and layer, and of the whole model; ``shared``: noise of all layers."""
    rank, multiplier = record["config"]["adapter"]["rank"], record["gamma"]
    done, step = len(shared), np.arange(len(shared))
    drift = 1 + step[:, None] / record["config"]["train"]["steps"]
    of_layer = np.exp(0.6 * np.random.default_rng(1).standard_normal(layers))
    kinds = [KINDS[n % 7] for n in range(layers)]
    places = {
        "step": np.repeat(step, layers),
        "layer": pd.Categorical(
            [f"model.layers.{n // 7}.{kinds[n]}" for n in range(layers)] * done
        ),
        "block": np.tile(np.arange(layers) // 7, done),
        "kind": pd.Categorical(kinds * done),
        "batch": pd.Categorical([TRAIN] * done * layers),
    }
    parts = []
    for number, site in enumerate(SITES):
        steep = 0.05 * np.random.default_rng(number).standard_normal(layers)
        size = multiplier * rank ** (0.5 + steep) * of_layer * 10.0 ** -(number % 5)
        size = size * np.exp(shared + 0.12 * draw.standard_normal((done, layers))) * drift
        if diverged:
            size[-1] = np.nan
        stats = {
            stat: (factor * size).ravel().astype(np.float32) for stat, factor in MOMENTS.items()
        }
        stats["nonfinite"] = ~np.isfinite(size).ravel() * 1.0
        parts.append(
            pd.DataFrame(places | {"site": pd.Categorical([site] * done * layers)} | stats)
        )
    wide = {"step": step, "layer": MODEL_WIDE, "block": -1, "kind": MODEL_WIDE, "batch": TRAIN}
    noise = np.exp(shared[:, 0])
    norm, descent = multiplier * rank**0.5 * noise, 1e-3 * multiplier * rank * noise
    parts.append(pd.DataFrame(wide | {"site": "adapter_grad", "norm": norm}))
    parts.append(pd.DataFrame(wide | {"site": "adapter_update", "descent": descent}))
    return pd.concat(parts, ignore_index=True).sort_values("step", kind="stable")


def opened(page: Page, url: str) -> float:
    """Milliseconds from navigation until the page is usable: charts drawn and idle."""
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return float(page.evaluate("new Promise(done => setTimeout(() => done(performance.now())))"))


class MainThread:
    """Time that a page's main thread computes; waiting on a busy machine does not count."""

    def __init__(self, page: Page) -> None:
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.before = 0.0

    def since(self) -> float:
        """Milliseconds since the last call, or since the beginning."""
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        now = 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
        spent, self.before = now - self.before, now
        return float(spent)


CHANGES = {
    "kind": "down_proj",
    "rank": "4",
    "order": "kind",
    "layer": "model.layers.3.down_proj",
    "stat": "rms",
    "site": "adapter_out",
    "step": "20",
}
"""The value given to each chooser, in turn. A new site or stat is unpacked first."""

ANSWER = """async ([name, value]) => {
    const chooser = document.getElementById(name), began = performance.now();
    const selects = chooser.tagName === "SELECT";
    if (selects && ![...chooser.options].some(option => option.value === value)) return null;
    chooser.value = value;
    chooser.dispatchEvent(new Event(selects ? "change" : "input", { bubbles: true }));
    await rendering;
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - began;
}"""
"""Sets a chooser. Returns the milliseconds until the page has drawn, or null without the value."""

Times = dict[str, list[tuple[float, float]]]


def measure(file: Path, repeats: int) -> Times:
    """Wall-clock and main-thread milliseconds of opening ``file`` and of every chooser."""
    times: Times = {}
    with sync_playwright() as playwright:
        for _ in range(repeats):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            page = browser.new_page(viewport={"width": 1920, "height": 1080})
            thread = MainThread(page)
            opening = (opened(page, f"{file.as_uri()}#tab=layers"), thread.since())
            times.setdefault("to interactive", []).append(opening)
            for name, value in CHANGES.items():
                answer = page.evaluate(ANSWER, [name, value])
                spent = thread.since()
                if answer is not None:
                    times.setdefault(f"choose {name}", []).append((answer, spent))
            browser.close()
    return times


def main() -> None:
    """Write the study, export it and print the times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("cells", 20), ("layers", 210), ("steps", 200), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch) / "synthetic"
        if not folder.exists():
            write_study(folder, asked.cells, asked.layers, asked.steps)
        file = Path(scratch) / "page.html"
        began = time.perf_counter()
        inside, there = export([folder], file)
        seconds, size = time.perf_counter() - began, file.stat().st_size / 1e6
        print(f"{asked.cells} cells x {asked.layers} layers x {asked.steps} steps")
        print(f"export: {size:.2f} MB, {inside} of {there} quantities, {seconds:.1f} s")
        times = measure(file, asked.repeats)
    for name, measured in times.items():
        wall, computed = zip(*measured, strict=True)
        print(
            f"{name:<16} median {statistics.median(wall):5.0f} ms, max {max(wall):5.0f} ms; "
            f"main thread {statistics.median(computed):5.0f} ms"
        )


if __name__ == "__main__":
    main()
