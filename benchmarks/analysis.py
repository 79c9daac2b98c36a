"""How long does a study of 20 million probe values take to analyse and to draw, and how much memory?

    python benchmarks/analysis.py                 # the whole size: 4 million rows
    python benchmarks/analysis.py --values 1e6    # fewer steps of the same study

A study of SmolLM2's shape is written to a temporary folder as training writes it (power laws in the rank under both
rules, a seed's noise on them; 10 ranks, 5 seeds, 210 layers, 12 sites), then loaded, analysed and drawn in a process of
its own, as ``study analyze`` and ``study figures`` do. Each part's time is wall clock, its memory the process's peak so
far; loading is told apart, for it is parquet's and pandas' own.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

RANKS, SEEDS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048), range(5)
P = {"lora": 1.0, "rslora": 0.5}
BLOCKS = 30
WIDTHS = {"q_proj": (576, 576), "k_proj": (576, 192), "v_proj": (576, 192), "o_proj": (576, 576)}
WIDTHS |= {"gate_proj": (576, 1536), "up_proj": (576, 1536), "down_proj": (1536, 576)}
LAWS = dict.fromkeys(("adapter_in", "layer_out", "layer_out_grad"), (0.0, 0))
LAWS |= dict.fromkeys(("adapter_out", "adapter_in_grad", "delta_w"), (1.0, 1))
LAWS |= dict.fromkeys(("A_grad", "B_grad", "adapter_grad"), (0.5, 1))
LAWS |= dict.fromkeys(("A", "A_update", "B_update", "adapter_update"), (0.5, 0))
"""The powers of the rank and of gamma in a statistic of the site, under a sign-like rule."""
MODEL_WIDE = ("adapter_grad", "adapter_update")
STATS = ("mean_abs", "rms", "m4", "max_abs", "norm")
LAYERS = BLOCKS * len(WIDTHS)
VALUES_PER_STEP = len(RANKS) * len(P) * len(SEEDS) * LAYERS * 12 * len(STATS)


def write_study(folder: Path, steps: int) -> None:
    """The study, ``steps`` probed steps of every cell."""
    from study.store import CellWriter

    places = _places()
    layers = places[places["kind"] != "model"]
    power = np.array([LAWS[site] for site in layers["site"]])
    factor = (1 + np.arange(len(layers)) % 7)[:, None]
    for number, (scaling, rank, seed) in enumerate(itertools.product(P, RANKS, SEEDS)):
        noise = np.random.default_rng([seed, number])
        gamma = 16.0 * rank ** -P[scaling]
        size = factor * (rank ** power[:, :1]) * gamma ** power[:, 1:]
        writer = CellWriter(
            folder / "cells" / f"{number:012x}",
            "",
            _record(number, scaling, rank, seed, gamma, steps),
        )
        for step in range(steps):
            rows = places.assign(step=step, batch="train")
            values = size * np.exp(0.05 * noise.standard_normal((len(layers), len(STATS))))
            rows.loc[layers.index, list(STATS)] = values
            descent = 1e-3 * gamma * rank * np.exp(0.05 * noise.standard_normal())
            rows.loc[rows["kind"] == "model", ["norm", "descent"]] = gamma * rank**0.5, descent
            writer.append("probes", rows)
            loss = 3.0 - 0.1 * step
            row = {
                "step": step,
                "tokens": 192 * step,
                "loss": loss,
                "loss_after": loss - descent,
                "clip_factor": 1.0,
            }
            evaluated = {"eval_loss": loss} if step in (0, steps - 1) else {}
            writer.append(
                "metrics",
                pd.DataFrame([{**row, "lr": 1e-5, "grad_norm": gamma * rank**0.5, **evaluated}]),
            )
        writer.close("complete", steps_done=steps)


def _places() -> pd.DataFrame:
    """Where a step's rows are from: every site of every layer, and the two that are taken over the whole model."""
    rows = [
        {
            "site": site,
            "layer": f"model.layers.{block}.{kind}",
            "block": block,
            "kind": kind,
            "d_in": d_in,
            "d_out": d_out,
        }
        for site in LAWS
        if site != "adapter_grad"
        for block in range(BLOCKS)
        for kind, (d_in, d_out) in WIDTHS.items()
    ]
    rows += [{"site": site, "layer": "model", "block": -1, "kind": "model"} for site in MODEL_WIDE]
    places = pd.DataFrame(rows)
    aligned = places["site"] == "adapter_out"
    places["r_align"], places["r_sign"] = (
        np.where(aligned, 5.0, np.nan),
        np.where(aligned, 25.0, np.nan),
    )
    return places.assign(**dict.fromkeys((*STATS, "descent"), np.nan))


def _record(number: int, scaling: str, rank: int, seed: int, gamma: float, steps: int) -> dict:
    adapter = {"rank": rank, "scaling": scaling, "exponent": None, "alpha": 16.0, "init": "kaiming"}
    return {
        "cell_id": f"{number:012x}",
        "study": "benchmark",
        "model": "known",
        "data": "pydoc",
        "gamma": gamma,
        "device": "cpu",
        "config": {
            "adapter": adapter | {"dropout": 0.0, "targets": "all-linear"},
            "optimizer": {"name": "adamw", "lr": 1e-5, "weight_decay": 0.0, "eps": 1e-8},
            "train": {
                "steps": steps,
                "batch_size": 4,
                "accumulation": 1,
                "clip": None,
                "schedule": "constant",
            }
            | {"warmup": 0},
            "data": {"seed": seed, "sequence_length": 48},
            "seed": seed,
            "precision": "float32",
        },
    }


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print what the block took, and the peak of the process at its end."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(f"{what:44s} {seconds:6.1f} s   {peak:5.2f} GiB at the peak", flush=True)


def measure(folder: Path) -> None:
    """Load, analyse and draw; in a process of its own, whose peak is then that of the three."""
    from study.analysis import analyze
    from study.figures import draw_all, save
    from study.store import load_tables, write_derived

    with timed("import and load"):
        tables = load_tables(folder)
    values = sum(int(tables.probes[stat].notna().sum()) for stat in STATS)
    print(f"{len(tables.probes):,} probe rows, {values:,} values", flush=True)
    with timed("analyze: fits, predictions, verdicts, p*"):
        found = analyze(tables.cells, tables.metrics, tables.probes)
    print(f"{len(found.exponents):,} fits, {len(found.stable):,} p*", flush=True)
    for name, table in vars(found).items():
        write_derived(folder, name, table)
    del found, tables
    with timed("load again, with the exponents"):
        tables = load_tables(folder)
    with timed("all figures, drawn and saved"):
        drawing, began = draw_all(tables), time.perf_counter()
        for name, figure in drawing:
            save(figure, folder / "plots", name)
            print(f"  {name:42s} {time.perf_counter() - began:6.1f} s", flush=True)
            began = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--values", type=float, default=20e6, help="probe values, a whole number of steps of them"
    )
    steps = max(2, round(parser.parse_args().values / VALUES_PER_STEP))
    print(f"{platform.machine()}, {os.cpu_count()} cores, pandas {pd.__version__}", flush=True)
    apart = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        for part, arguments in ((write_study, (Path(place), steps)), (measure, (Path(place),))):
            process = apart.Process(target=part, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{part.__name__} failed")


if __name__ == "__main__":
    main()
