"""``study bench checkpoint``: what a checkpoint costs a run, in time and in bytes.

One cell is trained with one checkpoint in the middle and without, in turn, over the same base. Both
runs are timed from their second step to their last, and to the end of the writing. The first step
also touches memory for the first time.
"""

import tempfile
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from study.config import CellConfig, parse
from study.config.compose import CONF
from study.sweeps.cells import Cell, plan
from study.sweeps.checkpointing import COST_SHARE, Checkpoints, newest
from study.sweeps.prepare import build_pack_corpus
from study.sweeps.run import loaded_base
from study.training.allocator import keep_freed_memory
from study.training.devices import choose_device, describe_device
from study.training.loop import train
from study.training.run import Run

NAME = "checkpoint"
"""Of the command and of the table."""
DEFAULT = 60.0
"""Seconds of work between two checkpoints, unless they would take more than a twentieth of it."""
Row = dict[str, Any]


class _NoRows:
    """Stands for the writer of a cell's rows, which a run has with checkpoints and without."""

    def sync(self) -> None:
        """There are none."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="smollm2", show_default=True, help="smollm2 or tiny.")
@click.option("--rank", default=2048, show_default=True, help="The rank of the cell.")
@click.option("--optimizer", default="adamw", show_default=True, help="Its optimizer.")
@click.option("--tokens", default=1024, show_default=True, help="Tokens of a step.")
@click.option("--steps", default=10, show_default=True, help="Optimizer steps of a run.")
@click.option("--rounds", default=3, show_default=True, help="Runs with and without, in turn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where checkpoints are written; default: a temporary folder.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path("results/bench"),
    show_default=True,
    help="Folder of the table.",
)
@click.option("--measured/--read", default=True, help="Measure, or only read an earlier table.")
def checkpoint(
    model: str,
    rank: int,
    optimizer: str,
    tokens: int,
    steps: int,
    rounds: int,
    device: str,
    folder: Path | None,
    to: Path,
    measured: bool,
) -> None:
    """Time a run with one checkpoint and without."""
    file = to / f"{NAME}.parquet"
    if measured:
        length = min(256, tokens)
        config = _cell(
            *(f"model={model}", f"device={device}", f"adapter.rank={rank}"),
            *(f"optimizer={optimizer}", f"train.steps={steps}", "optimizer.lr=1e-4"),
            *(f"data.sequence_length={length}", f"train.batch_size={tokens // length}"),
            f"checkpoint.every={steps // 2 + 1}",
        )
        rows = _rows(config, rounds, folder)
        to.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(file, index=False)
    click.echo(summary(pd.read_parquet(file)))


def summary(table: pd.DataFrame) -> str:
    """What the table says, in four lines."""
    with_one, without = (table[table["checkpoints"] == n] for n in (1, 0))
    cost = with_one[["nbytes", "copying", "writing", "reading"]].median()
    seconds, plain = with_one["seconds"].median(), without["seconds"].median()
    spent = cost["copying"] + cost["writing"]
    every, added = max(DEFAULT, COST_SHARE * spent), seconds - plain
    steps, rank = int(table["steps"].iloc[0]), int(table["rank"].iloc[0])
    return "\n".join(
        [
            f"a checkpoint at rank {rank}: {cost['nbytes'] / 1e9:.3g} GB; "
            f"training waits {cost['copying']:.3g} s for the copy, "
            f"{cost['writing']:.3g} s of writing beside it, {cost['reading']:.3g} s to read",
            f"{steps} steps: {plain:.4g} s without, {seconds:.4g} s with one: {added:+.3g} s "
            f"({seconds / plain - 1:+.1%}), medians of {len(without)}",
            f"checkpoint.every=60s: one every {every:.3g} s of work, {added / every:+.1%} of it",
            f"{table['device'].iloc[0]}, torch {table['torch'].iloc[0]}",
        ]
    )


def _cell(*overrides: str) -> CellConfig:
    GlobalHydra.instance().clear()
    plain = ["probes.steps=null", "train.eval_every=0", "data.heldout=16"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", overrides=[*plain, *overrides]))


def _rows(config: CellConfig, rounds: int, folder: Path | None) -> list[Row]:
    """A row per run. Each pair begins with the other way than the pair before."""
    keep_freed_memory()
    device = describe_device(choose_device(config.device))
    about = {
        "suite": NAME,
        "rank": int(config.adapter.rank),
        "optimizer": config.optimizer.name,
        "tokens": config.train.batch_size * config.data.sequence_length,
        "steps": config.train.steps - 1,
        "device": f"{device['device_name']}, {device['threads']} threads",
        "torch": torch.__version__,
    }
    rows = []
    for turn, place in product(range(rounds), range(2)):
        with tempfile.TemporaryDirectory(dir=folder) as results:
            [cell] = plan([replace(config, results_dir=results)])
            row = {"checkpoints": (turn + place) % 2, **_timed(cell, bool((turn + place) % 2))}
        rows.append(row | about)
        click.echo(
            "  {checkpoints} checkpoints: {seconds:.2f} s, copying {copying:.2f} s, "
            "writing {writing:.2f} s, {nbytes} bytes".format(**row),
            err=True,
        )
    return rows


def _timed(cell: Cell, checkpointed: bool) -> Row:
    """Train a cell. Seconds from its second step to its end, and what its checkpoint took."""
    device = choose_device(cell.config.device)
    base, corpus = loaded_base(cell.config, device), build_pack_corpus(cell.config)
    run = Run.of(cell.config, corpus, device)
    checkpoints = Checkpoints([cell], [_NoRows()], click.echo)
    began = 0.0
    for results in train(base, corpus, [run]):
        step = int(results[0].metrics["step"]) if results[0] else 0
        if checkpointed and checkpoints.due(step):
            checkpoints.write(results)
        if step == 0:
            began = time.perf_counter()
    checkpoints.flush()
    seconds, cost = time.perf_counter() - began, checkpoints.schedule.cost
    reading = _reading(cell, device) if checkpointed else 0.0
    return {"seconds": seconds, "reading": reading, **asdict(cost)}


def _reading(cell: Cell, device: torch.device) -> float:
    """Seconds to check the newest checkpoint and to read all of it."""
    began = time.perf_counter()
    snapshot = newest(cell, device, click.echo)
    assert snapshot is not None
    for name in snapshot.tensors:
        snapshot.tensors[name].sum()
    return time.perf_counter() - began
