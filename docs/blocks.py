"""Numbers in documents: the mechanism. :mod:`docs.make` is the command.

A document has a block wherever it shows a number that was measured::

    <!-- numbers: NAME ARGUMENT ... -->
    written by the function NAME
    <!-- end -->

The markers may also stand within a line. A function reads committed tables and returns Markdown.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pandas as pd

from study.analysis import load_tables
from study.store import StudyTables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results/reference"
"""The committed tables: a folder per study, and those of the benchmarks."""
PLOTS = ROOT / "plots/reference"
QUICK = "quick"
"""The study of the README: ``make study`` trains it."""
BLOCK = re.compile(r"(<!-- numbers: ([^>]+) -->)(.*?)(<!-- end -->)", re.DOTALL)

Block = Callable[..., str]
Say = Callable[[str], None]


class NoTables(LookupError):
    """What a block is written from is not there, such as the history of a shallow clone."""


def rewrite(text: str, blocks: Mapping[str, Block], say: Say) -> str:
    """``text`` with every block written anew.

    A block that raises :class:`NoTables` stays as it is, and ``say`` gets a line. Raises
    ``KeyError`` for a name that no function has.
    """

    def written(found: re.Match[str]) -> str:
        start, words, old, end = found.groups()
        name, *arguments = words.split()
        try:
            new = blocks[name](*arguments)
        except NoTables as missing:
            say(f"{words} stays as it is: {missing}")
            return found[0]
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
