"""The entry point of the console script ``study``."""

import os
import sys

import click

from study.cli.group import cli
from study.errors import StudyError


def main() -> None:
    """Entry point. A user's mistake gets one line and exit code 2; a bug gets a traceback."""
    try:
        # Hydra's completion script calls the executable like this, without the word train.
        if sys.argv[1:2] == ["-sc"]:
            from study.sweeps import app as hydra_app

            line = os.environ.get("COMP_LINE", "")
            os.environ["COMP_LINE"] = line.replace("study train", "study", 1)
            hydra_app.main(sys.argv[1:])
        else:
            cli(prog_name="study")
    except StudyError as error:
        click.echo(f"study: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(
            "study: interrupted; run the same command again to train the remaining cells",
            err=True,
        )
        sys.exit(130)
