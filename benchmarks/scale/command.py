"""``study bench scale``: write the study, run each command on it, and print what it took."""

import itertools
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .grid import AT_ONE_RATE, NAME, arguments
from .measure import Cost, cost

BARS: dict[str, dict[int, float]] = {
    "plan": {2000: 5.0},
    "start": {2000: 10.0},
    "status": {2000: 2.0, 10000: 5.0},
    "analyze": {2000: 20.0},
    "export": {2000: 20.0},
}
"""By command, the most seconds for a number of cells."""
MOST_GB = 1.0
"""The most memory of each of them, in GB."""
COMMANDS = {
    "plan": "study train --plan",
    "start": "study train, to the first row of the first cell",
    "repeat": "study train again, with nothing left to train",
    "status": "study status",
    "analyze": "study analyze",
    "export": "study dashboard --export",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cells", default=2000, show_default=True, help=f"A multiple of {AT_ONE_RATE}.")
@click.option(
    "--only", type=click.Choice(list(COMMANDS)), multiple=True, help="Run these commands only."
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the study, which is used again if it is there.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path("results/bench"),
    show_default=True,
    help="Folder of the table, scale.parquet.",
)
def scale(cells: int, only: tuple[str, ...], keep: Path | None, to: Path) -> None:
    """Time the commands on a study of thousands of tiny cells, and measure their memory."""
    cells = -(-cells // AT_ONE_RATE) * AT_ONE_RATE
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        results = (keep or Path(scratch) / "results") / str(cells)
        if not (results / NAME).exists():
            click.echo(f"writing {cells} cells to {results / NAME} ...", err=True)
            _in_another_process("write_study", results, cells)
        for name, taken in _measured(results, cells, only or tuple(COMMANDS), Path(scratch)):
            rows.append({"what": name, "cells": cells, **vars(taken)})
            click.echo(line(name, cells, taken))
    _in_another_process("write_costs", to, rows)


def line(name: str, cells: int, taken: Cost) -> str:
    """A command and what it took, beside its bars."""
    most = BARS.get(name, {}).get(cells)
    bars = f"bar {most:g} s, {MOST_GB:g} GB: " if most is not None else ""
    met = most is None or (taken.seconds <= most and taken.peak_gb <= MOST_GB)
    word = "" if most is None else "met" if met else "MISSED"
    return (
        f"{COMMANDS[name]:<50} {taken.seconds:6.1f} s  {taken.processor:6.1f} s of processor  "
        f"{taken.peak_gb:5.2f} GB  {bars}{word}"
    ).rstrip()


def _measured(
    results: Path, cells: int, names: tuple[str, ...], scratch: Path
) -> Iterator[tuple[str, Cost]]:
    """The commands ``names``, each with its cost. Every one starts without derived tables."""
    study, log = results / NAME, scratch / "log"
    for name in names:
        if name in ("plan", "start"):
            new = scratch / name
            sweep = arguments(new, cells)
            if name == "plan":
                yield name, cost(["train", "--plan", *sweep], log)
            else:
                yield name, cost(["train", *sweep], log, lambda new=new: _has_row(new / NAME))
            shutil.rmtree(new, ignore_errors=True)
            continue
        for table in study.glob("*.parquet"):
            table.unlink()
        command = {
            "repeat": ["train", *arguments(results, cells)],
            "status": ["status", str(study)],
            "analyze": ["analyze", str(study)],
            "export": ["dashboard", str(study), "--export", str(scratch / "page.html")],
        }[name]
        yield name, cost(command, log)


def _has_row(study: Path) -> bool:
    """Whether a cell of the study has written a row."""
    streams = itertools.chain(study.glob("cells/*/metrics.arrows"), study.glob("cells/*/*.parquet"))
    return any(stream.stat().st_size > 0 for stream in streams)


def _in_another_process(function: str, *args: Any) -> None:
    """Call a function of :mod:`.write`, which imports torch (see :mod:`.measure` for why there)."""
    process = multiprocessing.get_context("spawn").Process(target=_call, args=(function, args))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function} failed")


def _call(function: str, args: tuple[Any, ...]) -> None:
    getattr(import_module(f"{__package__}.write"), function)(*args)
