"""Sentences and tables of text on the terminal."""

import shutil
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from study.errors import MOST_CHARACTERS, printable

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 100
"""The most columns of a line of text."""


def print_sentences(sentences: Iterable[str]) -> None:
    """Print each sentence as an item of a list."""
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    for sentence in sentences:
        line = printable(sentence, MOST_CHARACTERS)
        click.echo(textwrap.fill(line, width, initial_indent="- ", subsequent_indent="  "))


def print_texts(title: str, rows: "pd.DataFrame", caption: str = "", by: str = "") -> None:
    """Print a frame of texts; with ``by``, the rows of each of its values below it."""
    table = Table(
        title=title,
        caption=Text(caption, style="table.caption") if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box leaves a blank between columns
        pad_edge=False,
    )
    names = [str(name) for name in rows if name != by]
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for part in [own for _, own in rows.groupby(by, sort=False)] if by else [rows]:
        if by:
            table.add_section()
            table.add_row(Text(printable(str(part[by].iloc[0])), style="bold"))
        for row in part[names].itertuples(index=False):
            table.add_row(*(Text(printable(str(text))) for text in row))
    Console().print(table)
