"""Time and memory to analyse and draw a study with 20 million probe values.

    python benchmarks/analysis.py                 # full size: 4 million rows
    python benchmarks/analysis.py --values 1e6    # fewer steps of the same study

The script writes a study of SmolLM2's shape to a temporary folder, as training does: 10 ranks, both
rules, 5 seeds, 210 layers, 12 sites, power laws in the rank with noise from the seed. Then another
process loads, analyses and draws it, as ``study analyze`` and ``study figures`` do. Times are wall
clock; memory is the peak of the process so far. Loading is listed separately, because it is the
work of parquet and pandas.
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
from typing import Any

import numpy as np
import pandas as pd

from study.vocabulary.quantities import MODEL_WIDE, TRAIN
from study.vocabulary.scaling import gamma

RANKS, SEEDS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048), range(5)
RULES = ("lora", "rslora")
BLOCKS = 30
WIDTHS = {"q_proj": (576, 576), "k_proj": (576, 192), "v_proj": (576, 192), "o_proj": (576, 576)}
WIDTHS |= {"gate_proj": (576, 1536), "up_proj": (576, 1536), "down_proj": (1536, 576)}
LAWS = dict.fromkeys(("adapter_in", "layer_out", "layer_out_grad"), (0.0, 0))
LAWS |= dict.fromkeys(("adapter_out", "adapter_in_grad", "delta_w"), (1.0, 1))
LAWS |= dict.fromkeys(("A_grad", "B_grad", "adapter_grad"), (0.5, 1))
LAWS |= dict.fromkeys(("A", "A_update", "B_update", "adapter_update"), (0.5, 0))
"""The powers of rank and gamma with which a site's statistics scale, under a sign-like rule."""
WHOLE_MODEL_SITES = ("adapter_grad", "adapter_update")
STATS = ("mean_abs", "rms", "m4", "max_abs", "norm")
LAYERS = BLOCKS * len(WIDTHS)
VALUES_PER_STEP = len(RANKS) * len(RULES) * len(SEEDS) * LAYERS * 12 * len(STATS)
ALPHA = 16.0


def write_study(folder: Path, steps: int) -> None:
    """Write the study to ``folder``: ``steps`` probed steps of every cell."""
    places = _places()
    grid = itertools.product(RULES, RANKS, SEEDS)
    for number, (scaling, rank, seed) in enumerate(grid):
        record = _record(number, scaling, rank, seed, steps)
        _write_cell(folder, record, places, np.random.default_rng([seed, number]))


def _write_cell(
    folder: Path, record: dict[str, Any], places: pd.DataFrame, noise: np.random.Generator
) -> None:
    from study.store import CellWriter

    rank, multiplier = record["config"]["adapter"]["rank"], record["gamma"]
    steps = record["config"]["train"]["steps"]
    layers = places[places["kind"] != MODEL_WIDE]
    power = np.array([LAWS[site] for site in layers["site"]])
    factor = (1 + np.arange(len(layers)) % 7)[:, None]
    size = factor * (rank ** power[:, :1]) * multiplier ** power[:, 1:]
    writer = CellWriter.open(folder / "cells" / record["cell_id"], "", record)
    for step in range(steps):
        rows = places.assign(step=step, batch=TRAIN)
        values = size * np.exp(0.05 * noise.standard_normal((len(layers), len(STATS))))
        rows.loc[layers.index, list(STATS)] = values
        norm = multiplier * rank**0.5
        descent = 1e-3 * multiplier * rank * np.exp(0.05 * noise.standard_normal())
        rows.loc[rows["kind"] == MODEL_WIDE, ["norm", "descent"]] = norm, descent
        writer.append("probes", rows)
        loss = 3.0 - 0.1 * step
        row = {"step": step, "tokens": 192 * step, "loss": loss, "loss_after": loss - descent}
        row |= {"clip_factor": 1.0, "lr": 1e-5, "grad_norm": norm}
        if step in (0, steps - 1):
            row["eval_loss"] = loss
        writer.append("metrics", pd.DataFrame([row]))
    writer.close("complete", steps_done=steps)


def _places() -> pd.DataFrame:
    """The layer and site of each row of a step, whole-model rows included."""
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
    rows += [
        {"site": site, "layer": MODEL_WIDE, "block": -1, "kind": MODEL_WIDE}
        for site in WHOLE_MODEL_SITES
    ]
    places = pd.DataFrame(rows)
    aligned = places["site"] == "adapter_out"
    places["r_align"] = np.where(aligned, 5.0, np.nan)
    places["r_sign"] = np.where(aligned, 25.0, np.nan)
    return places.assign(**dict.fromkeys((*STATS, "descent"), np.nan))


def _record(number: int, scaling: str, rank: int, seed: int, steps: int) -> dict[str, Any]:
    adapter = {"rank": rank, "scaling": scaling, "exponent": None, "alpha": ALPHA}
    adapter |= {"init": "kaiming", "dropout": 0.0, "targets": "all-linear"}
    train = {"steps": steps, "batch_size": 4, "accumulation": 1, "clip": None}
    return {
        "cell_id": f"{number:012x}",
        "study": "benchmark",
        "model": "known",
        "data": "pydoc",
        "gamma": gamma(scaling, ALPHA, rank),
        "device": "cpu",
        "config": {
            "adapter": adapter,
            "optimizer": {"name": "adamw", "lr": 1e-5, "weight_decay": 0.0, "eps": 1e-8},
            "train": train | {"schedule": "constant", "warmup": 0},
            "data": {"seed": seed, "sequence_length": 48},
            "seed": seed,
            "precision": "float32",
        },
    }


class Timings:
    """Seconds of each part and the process's peak memory: printed, and as a table."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def timed(self, what: str, label: str) -> Iterator[None]:
        """Time the block. ``what`` is its key in the table."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.add(what, label, seconds)
        print(f"{label:44s} {seconds:6.1f} s   peak {peak_gib():5.2f} GiB", flush=True)

    def add(self, what: str, label: str, value: float) -> None:
        """A row: seconds, or GiB."""
        self.rows.append({"what": what, "label": label, "value": value})

    def table(self, values: int) -> pd.DataFrame:
        """The rows, with the number of probe values and the machine."""
        return pd.DataFrame(self.rows).assign(values=values, device=processor())


def peak_gib() -> float:
    """The peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def processor() -> str:
    """The processor and the number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def measure(folder: Path, to: Path) -> None:
    """Load, analyse and draw. Runs in a process of its own, so that the peak is that of these."""
    from study.analysis import with_derived
    from study.figures import draw_all, save
    from study.store import load_measured, write_table

    timings = Timings()
    with timings.timed("load", "import and load"):
        tables = load_measured(folder)
    values = sum(int(tables.probes[stat].notna().sum()) for stat in STATS)
    print(f"{len(tables.probes):,} probe rows, {values:,} values", flush=True)
    with timings.timed("analyze", "fits, predictions, verdicts and p*: time"):
        tables = with_derived(tables)
    timings.add("memory", "the same: memory", peak_gib())
    print(f"{len(tables.exponents):,} fits, {len(tables.stable):,} p*", flush=True)
    with timings.timed("figures", "all figures"):
        drawing, began = draw_all(tables), time.perf_counter()
        for name, figure in drawing:
            save(figure, folder / "plots", name)
            print(f"  {name:42s} {time.perf_counter() - began:6.1f} s", flush=True)
            began = time.perf_counter()
    to.mkdir(parents=True, exist_ok=True)
    write_table(to / "analysis.parquet", timings.table(values))


def main() -> None:
    """Write the study, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--values", type=float, default=20e6, help="probe values; rounded to whole steps"
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("results/bench"),
        help="folder of the table, analysis.parquet",
    )
    options = parser.parse_args()
    steps = max(2, round(options.values / VALUES_PER_STEP))
    print(f"{platform.machine()}, {os.cpu_count()} cores, pandas {pd.__version__}", flush=True)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        for part, arguments in (
            (write_study, (Path(place), steps)),
            (measure, (Path(place), options.to)),
        ):
            process = spawn.Process(target=part, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{part.__name__} failed")


if __name__ == "__main__":
    main()
