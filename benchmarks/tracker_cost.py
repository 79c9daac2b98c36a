"""How much ``tracker=wandb`` costs: one cell trained with and without it, in turn, on SmolLM2.

    python benchmarks/tracker_cost.py [PAIRS] [STEPS]

A run is timed from the start of a pack until W&B has received everything, including the wait for
its thread. Loading the base is not timed. Two times are printed: wall-clock time, and processor
time of this process and of W&B's, which other work on the machine does not change. The first
tracked run also imports W&B and starts its process, which happens once for any number of cells; it
is printed but not counted.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from hydra import compose, initialize_config_dir

from study.config import CellConfig, parse
from study.config.compose import CONF
from study.sweeps import run as sweep
from study.sweeps.cells import plan
from study.training.devices import choose_device

TRACKERS = {"untracked": "tracker=none", "tracked": "tracker=wandb"}


def processor_seconds() -> float:
    """Processor time of this process and of its children."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def composed(overrides: list[str]) -> CellConfig:
    """A cell from Hydra overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", overrides=overrides))


def train_once(overrides: list[str], results: Path) -> tuple[float, float]:
    """Wall-clock and processor seconds of one cell."""
    pack = plan([composed([*overrides, f"results_dir={results}"])])
    clock, processors = time.perf_counter(), processor_seconds()
    sweep.run(pack)
    return time.perf_counter() - clock, processor_seconds() - processors


def main(pairs: int = 5, steps: int = 12) -> None:
    """Print every run, the medians and their ratios."""
    cell = ["experiment=quick", "adapter.rank=16", "adapter.scaling=rslora", f"train.steps={steps}"]
    config = composed(cell)
    sweep.loaded_base(config, choose_device(config.device))  # stays loaded for all runs
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TRACKERS}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(-1, pairs):
            for name, tracker in TRACKERS.items():
                clock, processors = train_once([*cell, tracker], Path(folder) / f"{name}{pair}")
                note = "  (first, not counted)" if pair < 0 else ""
                times = f"{clock:7.2f} s wall clock  {processors:7.2f} s processors"
                print(f"{name:>9}  {times}{note}", flush=True)
                if pair >= 0:
                    found[name].append((clock, processors))
    for which, what in enumerate(("wall clock", "processors")):
        without, tracked = (
            statistics.median(run[which] for run in found[name]) for name in TRACKERS
        )
        ratio = tracked / without - 1
        print(f"{what}: median {without:.2f} s without, {tracked:.2f} s with W&B: {ratio:+.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
