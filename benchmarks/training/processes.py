"""Train one way in this process, in a process of its own, or from the command line."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from omegaconf import OmegaConf

from study.config import CellConfig
from study.models import tiny
from study.models.card import checkpoint_of

from .ways import WAYS, TimedRun, labelled_rows, options_of

T = TypeVar("T")
SHARED = (
    "model.name",
    "device",
    "data.sequence_length",
    "train.batch_size",
    "train.steps",
    "optimizer.lr",
)
"""Keys that all cells of a command line share."""


def train(way: str, config: CellConfig) -> TimedRun:
    """Train ``config`` one way, in this process."""
    run = WAYS[way](config)
    run.micro_batches = config.train.accumulation
    return run


def here(measure: Callable[[CellConfig], T], config: CellConfig) -> T:
    """``measure(config)`` in this process."""
    return measure(config)


def apart(measure: Callable[[CellConfig], T], config: CellConfig) -> T:
    """``measure(config)`` in a process of its own, with the machine's whole memory.

    If the system kills that process, as it does when memory runs out, the same step is tried again
    with twice as many micro-batches. Raises ``SystemExit`` if one sequence at a time does not fit.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, config).result()
        except BrokenProcessPool:
            size = config.train.batch_size
            if size == 1:
                raise SystemExit(
                    f"rank {config.adapter.rank} does not fit in this machine's memory"
                ) from None
    halves = replace(config.train, batch_size=size // 2, accumulation=2 * config.train.accumulation)
    return apart(measure, replace(config, train=halves))


def time_command(way: str, cells: Sequence[CellConfig]) -> float:
    """Seconds of a command that trains ``cells`` one way, from its start to its exit.

    ``trainer`` trains one cell, and its rows are tokenised beforehand. Ours tokenises within the
    time, unless the cache already holds the tokens.
    """
    with tempfile.TemporaryDirectory() as folder:
        if way == "trainer":
            command = _peft_command(cells[0], Path(folder))
        else:
            command = _study_command(cells, Path(folder))
        began = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr.strip().splitlines()[-1]}")
    return seconds


def _peft_command(config: CellConfig, folder: Path) -> list[str]:
    """``peft_script.py`` with its files, which are written to ``folder``."""
    checkpoint = checkpoint_of(config.model)
    model = folder / "model" if checkpoint is None else checkpoint.folder
    if checkpoint is None:
        tiny.build().save_pretrained(model)
    rows, options = folder / "rows", folder / "options"
    torch.save(labelled_rows(config), rows)
    given = options_of(config) | {"model": str(model), "rows": str(rows)}
    options.write_text(json.dumps(given))
    return [sys.executable, str(Path(__file__).parent / "peft_script.py"), str(options)]


def _study_command(cells: Sequence[CellConfig], folder: Path) -> list[str]:
    """One ``study train`` sweep over the ranks and rules of ``cells``."""
    tree = OmegaConf.structured(cells[0])
    ranks = dict.fromkeys(str(config.adapter.rank) for config in cells)
    rules = dict.fromkeys(config.adapter.scaling for config in cells)
    return [
        *(sys.executable, "-c", "from study.cli import main; main()", "train", "-m"),
        *(f"{key.removesuffix('.name')}={OmegaConf.select(tree, key)}" for key in SHARED),
        *("probes.steps=null", "train.eval_every=0", "data=xbrl_extract", "data.heldout=16"),
        f"results_dir={folder}",
        f"adapter.rank={','.join(ranks)}",
        f"adapter.scaling={','.join(rules)}",
    ]
