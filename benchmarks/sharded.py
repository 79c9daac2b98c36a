"""``study bench sharded``: the memory of each process of a sharded cell, beside its plan.

torchrun starts the processes on this machine. Each loads the base, trains one cell with the others
(``train.shard=true``) on the CPU, and reads the most memory that it has held (``ru_maxrss``). What
it held before training, with the whole base, is subtracted. The plan counts what training adds, and
the head, which a CPU does not copy. So the head is subtracted from the plan.

Freed memory goes back to the system at once here. ``study train`` keeps it for the next tensor, and
then the number would show how well it fits.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import pandas as pd
import psutil
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from study.config import CellConfig, parse
from study.config.compose import CONF
from study.errors import StudyError
from study.sweeps import processes
from study.sweeps.cells import plan
from study.sweeps.estimate import fold_bytes
from study.sweeps.prepare import prepare
from study.sweeps.run import loaded_base
from study.training.devices import describe_device, peak_memory_gb
from study.training.loop import train

NAME = "sharded"
"""Of the command and of the table."""
GIB = 2**30
PLAIN = ("train.shard=true", "device=cpu", "probes.steps=null", "train.eval_every=0")
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""For glibc: every larger tensor has pages of its own, which the system gets back with it."""
Row = dict[str, Any]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="smollm2", show_default=True, help="smollm2 or tiny.")
@click.option("--rank", default=2048, show_default=True, help="The rank of the cell.")
@click.option("--targets", default="attention", show_default=True, help="Its adapted layers.")
@click.option("--optimizer", default="sgd", show_default=True, help="Its optimizer.")
@click.option("--tokens", default=64, show_default=True, help="Tokens of a sequence.")
@click.option("--steps", default=2, show_default=True, help="Optimizer steps.")
@click.option("--count", default=2, show_default=True, help="Processes, and sequences of a step.")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path("results/bench"),
    show_default=True,
    help="Folder of the table.",
)
@click.option("--measured/--read", default=True, help="Measure, or only read an earlier table.")
def sharded(
    model: str,
    rank: int,
    targets: str,
    optimizer: str,
    tokens: int,
    steps: int,
    count: int,
    to: Path,
    measured: bool,
) -> None:
    """Compare the memory of a sharded cell with its plan."""
    file = to / f"{NAME}.parquet"
    if measured:
        cell = [f"model={model}", f"adapter.rank={rank}", f"optimizer={optimizer}"]
        cell += [f"data.sequence_length={tokens}", f"train.batch_size={count}"]
        cell += [f"adapter.targets={targets}", f"train.steps={steps}"]
        rows = _rows(cell, count)
        to.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(file, index=False)
    click.echo(summary(pd.read_parquet(file)))


def summary(table: pd.DataFrame) -> str:
    """What the table says: the cell, its plan, and a line for each process."""
    first = table.iloc[0]
    planned = float(first["planned"])
    lines = [
        f"{first['model']}, {first['targets']}, rank {first['rank']}, {first['optimizer']}, "
        f"{first['tokens']} tokens a sequence, {table['process'].nunique()} processes; "
        f"{first['device']}, torch {first['torch']}",
        f"planned for each process: {planned:.2f} GiB",
    ]
    for process, gib in zip(table["process"], table["gib"].astype(float), strict=True):
        over = planned / gib - 1
        lines.append(f"measured in process {process}: {gib:.2f} GiB (plan {over:+.1%})")
    return "\n".join(lines)


def _rows(overrides: list[str], count: int) -> list[Row]:
    """A row per process of torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
        command = [*start, "-m", __name__, str(file), f"results_dir={folder}", *overrides]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | RETURNS_MEMORY
        )
        if done.returncode:
            raise StudyError(f"torchrun failed: {done.stderr.strip()[-2000:]}")
        rows: list[Row] = json.loads(file.read_text())
    return rows


def _cell(overrides: list[str]) -> CellConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", overrides=[*PLAIN, *overrides]))


def resident(steps: Iterable[object]) -> float:
    """GiB that this process holds at most while ``steps`` run, above what it holds before.

    Raises :class:`StudyError` if it has held more before: the peak is then not that of the steps.
    """
    device = torch.device("cpu")
    before, earlier = psutil.Process().memory_info().rss / GIB, peak_memory_gb(device)
    for _ in steps:
        pass
    peak = peak_memory_gb(device)
    if peak <= earlier:
        raise StudyError(f"loading took {earlier:.2f} GiB, and training no more: raise --rank")
    return peak - before


def _train(file: Path, overrides: list[str]) -> None:
    """Train with the other processes. Process 0 writes the rows of all."""
    import torch.distributed.fsdp  # before it measures: code is no part of a plan

    device = torch.device("cpu")
    world = processes.world(device)
    config = _cell(overrides)
    pack = prepare(plan([config]), device=device)
    [cell] = pack.cells
    base = loaded_base(config, device)
    gib = resident(train(base, pack.corpus, [cell.run], world=world))
    about = describe_device(device)
    row = {
        "planned": (fold_bytes([cell.estimate]) - cell.estimate.head_bytes) / GIB,
        "model": config.model.name,
        "targets": str(config.adapter.targets),
        "rank": int(config.adapter.rank),
        "optimizer": config.optimizer.name,
        "tokens": config.data.sequence_length,
        "device": f"{about['device_name']}, threads of a process: {about['threads']}",
        "torch": torch.__version__,
    }
    every = world.gathered(torch.tensor(gib, dtype=torch.float64)).tolist()
    if world.number == 0:
        rows = [row | {"process": number, "gib": own} for number, own in enumerate(every)]
        file.write_text(json.dumps(rows))


if __name__ == "__main__":
    _train(Path(sys.argv[1]), sys.argv[2:])
    os._exit(0)  # threads of a group may abort a process that ends in another way
