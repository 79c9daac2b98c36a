"""What ``tracker=wandb`` costs: the same cell trained with and without it, in turn, on SmolLM2 at the size of a CPU.

    python benchmarks/tracker_cost.py [PAIRS] [STEPS]

A time runs from the start of a pack's training to the moment that W&B has everything, waiting for its thread included;
loading the base is left out, as both have it. Two times are taken: the clock's, and the processors' (this process and
W&B's own), which other work on the machine does not change. The first tracked run also imports W&B and starts its
process, once for any number of cells, and is printed by itself.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from hydra import compose, initialize_config_dir

from study.config import parse
from study.config.compose import CONF
from study.sweeps import run as sweep
from study.sweeps.cells import plan
from study.training.devices import choose_device


def processor_seconds() -> float:
    """Of this process and those that it started."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def train_once(overrides: list[str], results: Path) -> tuple[float, float]:
    """Seconds by the clock and by the processors that one cell takes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = parse(compose("config", overrides=[*overrides, f"results_dir={results}"]))
    pack = plan([config])
    clock, processors = time.perf_counter(), processor_seconds()
    sweep.run(pack)
    return time.perf_counter() - clock, processor_seconds() - processors


def main(pairs: int = 5, steps: int = 12) -> None:
    """Print every run, the medians and their ratios."""
    cell = ["experiment=quick", "adapter.rank=16", "adapter.scaling=rslora", f"train.steps={steps}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = parse(compose("config", overrides=cell))
    base = sweep.load_base(config.model, choose_device(config.device), config.precision)
    sweep.load_base = lambda *_: base  # loaded once: its time is no part of the question
    trackers = {"untracked": "tracker=none", "tracked": "tracker=wandb"}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in trackers}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(-1, pairs):
            for name, tracker in trackers.items():
                seconds = train_once([*cell, tracker], Path(folder) / f"{name}{pair}")
                note = "  (first, not counted)" if pair < 0 else ""
                print(
                    f"{name:>9}  {seconds[0]:7.2f} s by the clock  {seconds[1]:7.2f} s of processors{note}",
                    flush=True,
                )
                if pair >= 0:
                    found[name].append(seconds)
    for which, what in enumerate(("clock", "processors")):
        without, tracked = (
            statistics.median(run[which] for run in found[name]) for name in trackers
        )
        print(
            f"{what}: median {without:.2f} s without, {tracked:.2f} s with: {tracked / without - 1:+.1%}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
