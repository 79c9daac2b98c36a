"""The command group ``study``, and the arguments that several commands share."""

import inspect
import json
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from study import __version__, load_plugins
from study.errors import StudyError, given, printable

PATH = click.Path(path_type=Path)
"""The type of an argument that names a file or a folder."""
STUDY_DIR = click.argument("study_dir", type=PATH, metavar="RESULTS/NAME")
"""The argument that names a study."""

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Decide": {
        "advise": ("advise", "Print alpha and learning rate for a rank and a rule, with evidence."),
        "rates": ("rates", "Print how the best learning rate changes with rank."),
        "power": ("power", "Print how many seeds each expectation needs, from a pilot."),
    },
    "Run": {
        "train": ("training", "Train one cell, or a sweep with -m (study train --help)."),
        "status": ("training", "List the cells of a study and their states."),
        "list": ("training", "List the studies in a folder."),
        "distances": ("tables", "Measure the distance of SGD runs from infinite rank."),
        "fetch": ("training", "Download a base model and print its path."),
        "bench": ("training", "Time training against PEFT."),
    },
    "Look": {
        "analyze": ("tables", "Fit scaling exponents and p*, and print a summary."),
        "figures": ("tables", "Draw the figures of a study."),
        "compare": ("tables", "Compare studies: differences of exponents, losses and settings."),
        "report": ("tables", "Write one page, and print what the study found."),
        "dashboard": ("dashboard", "Show every layer in a browser, also during training."),
        "audit": ("tables", "Examine a PEFT adapter: rule, gamma, size and rank of each layer."),
        "check": ("tables", "Verify every record, table and checkpoint of a study."),
    },
    "Exchange": {
        "import-config": ("exchange", "Import a configuration of Axolotl, TRL, PEFT or others."),
        "sweep-from": ("exchange", "Like import-config, swept over ranks and rules."),
        "import": ("exchange", "Check a PEFT adapter and print commands to train it."),
        "export": ("exchange", "Write a trained adapter to DIR in PEFT's format."),
        "fold": ("exchange", "Write a PEFT adapter with gamma folded into B, for any server."),
        "serve-check": ("exchange", "Print what each server multiplies a PEFT adapter by."),
        "archive": ("tables", "Write a study into one file per table, for a paper."),
    },
}
"""Every command with its module, which is imported when it runs, and its first line of help."""
COMMANDS = {name: row for rows in GROUPS.values() for name, row in rows.items()}
"""The commands of all groups."""


class Commands(click.Group):
    """The group ``study``: it imports the module of a command when that is asked for."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command. Its help begins with its line in :data:`GROUPS`."""
        super().add_command(cmd, name)
        cmd.help = f"{COMMANDS[cmd.name or ''][1]}\n\n{inspect.cleandoc(cmd.help or '')}"

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name. Raises :class:`StudyError` if there is none."""
        if cmd_name in COMMANDS:
            import_module(f"study.cli.{COMMANDS[cmd_name][0]}")
        elif not ctx.resilient_parsing:  # as it is during completion
            near = get_close_matches(cmd_name, COMMANDS, 1)
            meant = f"did you mean {near[0]}?" if near else "see study --help"
            raise StudyError(f"unknown command {given(cmd_name)}: {meant}")
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of the help, by group."""
        for title, rows in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, about) for name, (_, about) in rows.items()], 14)


def _import_plugins(
    context: click.Context, parameter: click.Parameter, named: tuple[str, ...]
) -> tuple[str, ...]:
    load_plugins(named or ())
    return named


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="study")
@click.option(
    "--plugin",
    multiple=True,
    metavar="MODULE",
    callback=_import_plugins,
    help="Import a module with rules, statistics or figures of your own; may be repeated.",
)
def cli(plugin: tuple[str, ...]) -> None:
    """How does an adapter's scaling behave as its rank grows?

    \b
    study train experiment=quick       train the ranks and rules of a study
    study analyze results/quick        fit scaling exponents and test them
    study figures results/quick        draw the figures from the tables
    study report  results/quick        write one page with everything
    study dashboard results/quick      show every layer in a browser
    """


QUIET = "study.quiet"
"""The key of ``click.Context.meta`` for ``-q``."""


def tables_as(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a command: ``--json``, ``--csv`` and ``-q``. The command gets ``output``, which
    is for :func:`print_tables`, or None for text."""

    def quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[QUIET] = value

    options = (
        click.option("--json", "output", flag_value="json", help="Print JSON; missing is null."),
        click.option("--csv", "output", flag_value="csv", help="Print the first table as CSV."),
        click.option(
            *("-q", "--quiet"),
            is_flag=True,
            expose_value=False,
            callback=quiet,
            help="Print only results, without progress and hints.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def print_tables(output: str, **tables: Any) -> None:
    """Print ``tables`` as ``output``: the first as ``csv``, or an object with a key per table as
    ``json``: rows of a frame, or any plain value. Infinite numbers are texts, missing is null."""
    from study.analysis.text import json_value  # takes a second

    if output == "csv":
        lines = next(iter(tables.values())).to_csv(index=False).strip().split("\n")
        click.echo("\n".join(printable(line, sys.maxsize) for line in lines))
    else:
        click.echo(json.dumps(json_value(tables), indent=1))


def say(line: str) -> None:
    """Print a line of progress or a hint on stderr; nothing with ``-q``."""
    context = click.get_current_context(silent=True)
    if context is None or not context.meta.get(QUIET):
        click.echo(line, err=True)


PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
"""For a command that parses its own arguments."""
