"""A complete study in the real format, without training all of it.

One cell is trained. All others get its rows with other numbers: power laws in the rank with noise
from the seed. Configurations, ids, records and hashes are those that a sweep would write, so every
command takes the study for one that was trained.
"""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from study.config.compose import CONF, compose
from study.store import CellWriter, load_cell_table, write_table
from study.sweeps import run as sweep
from study.sweeps.cells import Cell, plan
from study.sweeps.record import config_yaml, record_of
from study.training.devices import describe_device
from study.vocabulary.quantities import STATS

from .grid import NAME, SHARED, axes

CPU = torch.device("cpu")


def write_study(results: Path, cells: int) -> None:
    """Write the study :data:`~.grid.NAME` to ``results``."""
    planned = plan_cells(results, cells)
    trained = planned[0]
    sweep.run([trained])
    metrics, probes = (
        load_cell_table(trained.folder, name).to_pandas() for name in ("metrics", "probes")
    )
    for cell in planned[1:]:
        _write_cell(cell, metrics, probes)


def write_costs(to: Path, rows: list[dict[str, Any]]) -> None:
    """Write the costs of the commands and the machine to ``scale.parquet``.

    The rows of other commands and numbers of cells stay in the table.
    """
    to.mkdir(parents=True, exist_ok=True)
    device = f"{describe_device(CPU)['device_name']}, {os.cpu_count()} cores"
    new = pd.DataFrame(rows).assign(device=device)
    path = to / "scale.parquet"
    old = [pd.read_parquet(path)] if path.exists() else []
    table = pd.concat([*old, new], ignore_index=True).drop_duplicates(
        ["what", "cells"], keep="last"
    )
    write_table(to / "scale.parquet", table)


def plan_cells(results: Path, cells: int) -> list[Cell]:
    """The cells of the sweep, in order."""
    shared = [*SHARED, f"name={NAME}", f"results_dir={results}"]
    choices = [[f"{key}={value}" for value in values] for key, values in axes(cells).items()]
    grid = [list(cell) for cell in itertools.product(*choices)]
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return plan(compose(loader, "config", shared, grid))


def _write_cell(cell: Cell, metrics: pd.DataFrame, probes: pd.DataFrame) -> None:
    config = cell.config
    noise = np.random.default_rng([config.seed, int(cell.id, 16)])
    size = config.adapter.gamma * config.adapter.rank**0.5
    stats = probes[list(STATS)].to_numpy()
    scaled = stats * size * np.exp(0.05 * noise.standard_normal(stats.shape))
    far = abs(np.log10(config.optimizer.lr) + 3.5) + 0.02 * noise.standard_normal()
    losses = {name: metrics[name] + 0.1 * far for name in ("loss", "eval_loss") if name in metrics}
    writer = CellWriter.open(
        cell.folder, config_yaml(cell), record_of(cell, CPU, cell.sources.data)
    )
    writer.append("probes", probes.assign(**dict(zip(STATS, scaled.T, strict=True))))
    writer.append("metrics", metrics.assign(**losses))
    last = int(metrics["step"].iloc[-1])
    writer.close("complete", steps_done=last, seconds=0.1, peak_memory_gb=0.5)
