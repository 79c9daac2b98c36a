"""The console script ``study``: one module per kind of command."""

import sys

import click

from study.cli.group import cli
from study.errors import StudyError
from study.sweeps import signals


def main() -> None:
    """Entry point. A user's mistake gets one line and exit code 2; a bug gets a traceback.

    A signal gets 128 plus its number, and for ``study train`` the command that continues.
    """
    try:
        # Not standalone: click would report Ctrl-C itself, with exit code 1.
        code = cli(prog_name="study", standalone_mode=False)
        if isinstance(code, int) and code:
            sys.exit(code)
    except StudyError as error:
        click.echo(f"study: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except signals.Stopped as stopped:
        signals.say(stopped.line)
        sys.exit(stopped.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("study: interrupted", err=True)
        sys.exit(130)
