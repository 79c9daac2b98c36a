"""The command group ``study``, and the arguments that several commands share."""

from pathlib import Path
from typing import Any

import click

from study import __version__

PATH = click.Path(path_type=Path)
STUDY_DIR = click.argument("study_dir", type=PATH, metavar="RESULTS/NAME")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="study")
def cli() -> None:
    """How does an adapter's scaling behave as its rank grows?

    \b
    study train experiment=quick       train the ranks and rules of a study
    study analyze results/quick        fit scaling exponents and test them
    study figures results/quick        draw the figures from the tables
    study report  results/quick        write one page with everything
    study dashboard results/quick      show every layer in a browser
    """


def say(line: str) -> None:
    """Print a line on stderr."""
    click.echo(line, err=True)


PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
"""For a command that parses its own arguments."""
