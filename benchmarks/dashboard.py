"""How large an exported page is, how fast it opens and answers: ``python benchmarks/dashboard.py``.

Writes a synthetic study (by default 20 cells, 210 layers, 200 probed steps, two cells of it broken), exports it, and
opens the file in Chromium: the page with plotly.js, the charts drawn, and every chooser tried in turn. Each number is
the median over ``--repeats`` fresh browsers, with the worst beside it, and what of it the page's main thread computed.
``--keep FOLDER`` leaves the study there, or uses the one that is.
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
from study.vocabulary.quantities import MODEL_WIDE

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]
P = {"lora": 1.0, "rslora": 0.5}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SITES = (
    "adapter_in",
    "adapter_out",
    "layer_out",
    "layer_out_grad",
    "adapter_in_grad",
    "A",
    "B",
    "A_grad",
    "B_grad",
)
SITES += ("A_update", "B_update", "delta_w", "adapter_grad", "adapter_update")
MOMENTS = ("mean_abs", "rms", "m4", "max_abs", "norm")


def write_study(folder: Path, cells: int, layers: int, steps: int) -> None:
    """A study whose norms move as real ones do: power laws in the rank, drift over training, and noise of some 15 %
    from batch to batch in every layer, part of it shared by all, so that the numbers pack no better than real ones."""
    ranks = [int(rank) for rank in np.unique(np.geomspace(4, 2048, max(2, cells // 2)).round())]
    for scaling, rank in itertools.product(P, ranks):
        number = list(P).index(scaling) * len(ranks) + ranks.index(rank)
        broken = 3 * steps // 5 if (scaling, rank) == ("rslora", ranks[-1]) else None
        _write_cell(folder / "cells" / f"{number:012x}", scaling, rank, layers, steps, broken)


def _write_cell(
    folder: Path, scaling: str, rank: int, layers: int, steps: int, broken: int | None
) -> None:
    gamma = 16 * rank ** -P[scaling]
    config = {
        "adapter": {
            "rank": rank,
            "scaling": scaling,
            "exponent": None,
            "alpha": 16.0,
            "init": "kaiming",
        }
        | {"dropout": 0.0, "targets": "all-linear"},
        "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.0, "eps": 1e-8},
        "train": {
            "steps": steps,
            "batch_size": 8,
            "accumulation": 1,
            "clip": None,
            "schedule": "constant",
            "warmup": 0,
        },
        "data": {"seed": 0, "sequence_length": 128},
        "seed": 0,
        "precision": "float32",
    }
    record = {
        "cell_id": folder.name,
        "study": "synthetic",
        "model": "synthetic",
        "data": "synthetic",
        "gamma": gamma,
    }
    writer = CellWriter(folder, "", record | {"device": "cpu", "config": config})
    draw = np.random.default_rng([rank, len(scaling)])
    done = steps if broken is None else broken + 1
    step = np.arange(done)
    names = [f"model.layers.{n // 7}.{KINDS[n % 7]}" for n in range(layers)]
    shared = 0.08 * draw.standard_normal((done, 1))
    here = np.exp(0.6 * np.random.default_rng(1).standard_normal(layers))
    parts = []
    for place, site in enumerate(SITES):
        steep = 0.05 * np.random.default_rng(place).standard_normal(layers)
        size = gamma * rank ** (0.5 + steep) * here * 10.0 ** -(place % 5)
        size = (
            size
            * np.exp(shared + 0.12 * draw.standard_normal((done, layers)))
            * (1 + step[:, None] / steps)
        )
        if broken is not None:
            size[-1] = np.nan
        frame: dict[str, Any] = {
            "step": np.repeat(step, layers),
            "layer": pd.Categorical(names * done),
        }
        frame |= {"block": np.tile(np.arange(layers) // 7, done)}
        frame |= {"kind": pd.Categorical([name.rpartition(".")[2] for name in names] * done)}
        frame |= {
            "site": pd.Categorical([site] * done * layers),
            "batch": pd.Categorical(["train"] * done * layers),
        }
        for stat, factor in zip(MOMENTS, (0.8, 1.0, 1.5, 9.0, 40.0), strict=True):
            frame[stat] = (factor * size).ravel().astype(np.float32)
        frame["nonfinite"] = ~np.isfinite(size).ravel() * 1.0
        parts.append(pd.DataFrame(frame))
    wide = {"step": step, "layer": MODEL_WIDE, "block": -1, "kind": MODEL_WIDE, "batch": "train"}
    parts.append(
        pd.DataFrame(
            wide | {"site": "adapter_grad", "norm": gamma * rank**0.5 * np.exp(shared[:, 0])}
        )
    )
    parts.append(
        pd.DataFrame(
            wide | {"site": "adapter_update", "descent": 1e-3 * gamma * rank * np.exp(shared[:, 0])}
        )
    )
    probes = pd.concat(parts, ignore_index=True).sort_values("step", kind="stable")
    writer.append("probes", probes)
    loss = 3 - step / steps + 0.1 * draw.standard_normal(done)
    writer.append(
        "metrics",
        pd.DataFrame({"step": step, "loss": loss, "grad_norm": np.exp(shared[:, 0]), "lr": 1e-4}),
    )
    if broken is None:
        writer.close("complete", steps_done=steps, seconds=60.0)
    else:
        writer.close("diverged", steps_done=broken, diverged_step=broken, seconds=36.0)


def opened(page: Page, url: str) -> float:
    """Milliseconds from the navigation's start until the page can be used: its charts are drawn and it is idle."""
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return float(page.evaluate("new Promise(done => setTimeout(() => done(performance.now())))"))


class Processor:
    """What a page's main thread computes, in milliseconds: waiting for a busy machine does not count."""

    def __init__(self, page: Page) -> None:
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.before = 0.0

    def since(self) -> float:
        """Since the last call, or the beginning."""
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        now = 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
        spent, self.before = now - self.before, now
        return float(spent)


CHANGES = {
    "kind": "down_proj",
    "rank": "4",
    "order": "kind",
    "layer": "model.layers.3.down_proj",
    "curve": "grad_norm",
    "stat": "rms",
    "site": "adapter_out",
    "step": "20",
}
"""What is chosen, one after the other. A site or stat seen for the first time is unpacked first."""

ANSWER = """async ([name, value]) => {
    const chooser = document.getElementById(name), began = performance.now();
    if (chooser.tagName === "SELECT" && ![...chooser.options].some(option => option.value === value)) return null;
    chooser.value = value;
    chooser.dispatchEvent(new Event(chooser.tagName === "SELECT" ? "change" : "input", { bubbles: true }));
    await rendering;
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - began;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("cells", 20), ("layers", 210), ("steps", 200), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch) / "synthetic"
        if not folder.exists():
            write_study(folder, asked.cells, asked.layers, asked.steps)
        file = Path(scratch) / "page.html"
        began = time.perf_counter()
        inside, there = export(folder, file)
        print(f"{asked.cells} cells x {asked.layers} layers x {asked.steps} steps")
        seconds, size = time.perf_counter() - began, file.stat().st_size / 1e6
        print(f"export: {size:.2f} MB, {inside} of {there} quantities, {seconds:.1f} s")
        times: dict[str, list[tuple[float, float]]] = {}
        with sync_playwright() as playwright:
            for _ in range(asked.repeats):
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                page = browser.new_page(viewport={"width": 1920, "height": 1080})
                processor = Processor(page)
                times.setdefault("to interactive", []).append(
                    (opened(page, file.as_uri()), processor.since())
                )
                for name, value in CHANGES.items():
                    answer = page.evaluate(ANSWER, [name, value])
                    spent = processor.since()
                    if answer is not None:
                        times.setdefault(f"choose {name}", []).append((answer, spent))
                browser.close()
        for name, measured in times.items():
            wall, computed = zip(*measured, strict=True)
            print(
                f"{name:<16} median {statistics.median(wall):5.0f} ms, worst {max(wall):5.0f} ms; "
                f"main thread {statistics.median(computed):5.0f} ms"
            )


if __name__ == "__main__":
    main()
