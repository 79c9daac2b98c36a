"""Numbers in documents: the mechanism. :mod:`research.make` is the command.

A document has a block wherever it shows a number that was measured::

    <!-- numbers: NAME ARGUMENT ... -->
    written by the function NAME
    <!-- end -->

The markers may also stand within a line. A function reads committed tables and returns Markdown.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy.typing as npt
import pandas as pd
import yaml

from study.analysis.derived import load_tables
from study.analysis.fits import mean_interval
from study.analysis.text import minus
from study.analysis.wording import interval_text
from study.store import StudyTables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results/reference"
"""The committed tables: a folder per study, and those of the benchmarks."""
PLOTS = ROOT / "plots/reference"
QUICK = "quick"
"""The study of the README: ``make study`` trains it."""
STUDIES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "research/studies.yaml").read_text())
BLOCK = re.compile(r"(<!-- numbers: ([^>]+) -->)(.*?)(<!-- end -->)", re.DOTALL)

Block = Callable[..., str]
Say = Callable[[str], None]


class Written(Protocol):
    """What is known of the blocks that were written before: :class:`research.record.Record`."""

    def keeps(self, words: str, text: str) -> bool:
        """Whether the text of a block is right, so that it need not be computed again."""

    def add(self, words: str, text: str) -> None:
        """Note a text that was just computed."""


class NoTables(LookupError):
    """What a block is written from is not there, such as the history of a shallow clone."""


def blocks_of(module: ModuleType) -> dict[str, Block]:
    """The blocks of a module: its public functions that return a text. ``best_rate`` is the block
    ``best-rate``."""
    return {
        name.replace("_", "-"): found
        for name, found in vars(module).items()
        if isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")
        if found.__annotations__.get("return") is str
    }


def rewrite(text: str, blocks: Mapping[str, Block], say: Say, before: Written | None = None) -> str:
    """``text`` with every block written anew, but those that ``before`` keeps.

    A block that raises :class:`NoTables` stays as it is, and ``say`` gets a line. Raises
    ``KeyError`` for a name that no function has.
    """

    def written(found: re.Match[str]) -> str:
        start, words, old, end = found.groups()
        if before and before.keeps(words, old):
            return found[0]
        name, *arguments = words.split()
        try:
            new = blocks[name](*arguments)
        except NoTables as missing:
            say(f"{words} stays as it is: {missing}")
            return found[0]
        if before:
            before.add(words, new)
        return f"{start}\n{new}\n{end}" if old.startswith("\n") else f"{start}{new}{end}"

    return BLOCK.sub(written, text)


@cache
def study_tables(name: str = QUICK) -> StudyTables:
    """The tables of the committed study in ``results/reference/name``, analysed by this code."""
    return load_tables(RESULTS / name)


@cache
def table(name: str) -> pd.DataFrame:
    """A committed table of a benchmark: ``results/reference/name.parquet``."""
    return pd.read_parquet(RESULTS / f"{name}.parquet")


def mean_text(values: npt.ArrayLike, places: int = 2) -> str:
    """``0.079 [0.004, 0.153]``: the mean over seeds with its 95 % interval."""
    return minus(interval_text(*mean_interval(values), places=places))


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
