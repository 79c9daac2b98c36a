"""The command group ``study``, and the arguments that several commands share."""

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from study import __version__
from study.errors import MOST_CHARACTERS, printable

WIDTH = 100
"""The most columns of a line of text."""
PATH = click.Path(path_type=Path)
STUDY_DIR = click.argument("study_dir", type=PATH, metavar="RESULTS/NAME")


COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("training", "Train one cell, or a sweep with -m (study train --help)."),
    "status": ("training", "List the cells of a study and their states."),
    "analyze": ("tables", "Fit scaling exponents and p*, and print a summary."),
    "figures": ("tables", "Draw the figures of a study."),
    "compare": ("compare", "Compare studies: settings, exponents, p*, losses, and differences."),
    "report": ("tables", "Write one page, and print what the study found."),
    "dashboard": ("dashboard", "Show every layer in a browser, also during training."),
    "rates": ("rates", "Print how the best learning rate changes with rank."),
    "power": ("power", "Print how many seeds each expectation needs, from a pilot."),
    "distances": ("tables", "Measure the distance of SGD runs from infinite rank."),
    "advise": ("advise", "Say which alpha and learning rate to set, and on what that rests."),
    "import-config": ("exchange", "Import a configuration of Axolotl, LLaMA-Factory, TRL or PEFT."),
    "sweep-from": ("exchange", "Like import-config, swept over ranks and rules."),
    "audit": ("audit", "Examine a PEFT adapter: rule, gamma, size and rank of each layer."),
    "import": ("exchange", "Check a PEFT adapter and print commands to train it."),
    "export": ("exchange", "Write a trained adapter to DIR in PEFT's format."),
    "check": ("tables", "Verify every record, table and checkpoint of a study."),
    "archive": ("tables", "Write a study into one file per table."),
    "fetch": ("training", "Download a base model and print its path."),
    "bench": ("training", "Time training, inference and large studies."),
    "completion": ("training", "Print the code that completes words in a shell."),
}
"""Every command with its module and a line of help. A module is imported when its command runs,
because what it imports takes seconds."""

ALIASES = {"transfer": "advise"}
"""Earlier names of commands."""


class Commands(click.Group):
    """The commands of :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name in COMMANDS:
            import_module(f"study.cli.{COMMANDS[cmd_name][0]}")
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*map(CompletionItem, names), *options]


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
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


QUIET = "study.quiet"
"""The key of ``click.Context.meta`` that ``-q`` sets."""


def tables_as(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a command: ``--json``, ``--csv`` and ``-q``.

    The command gets ``output``: ``json``, ``csv`` or None for text. It passes the former two to
    :func:`print_tables`.
    """

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
    """Print ``tables`` on stdout as ``output``, which is ``json`` or ``csv``.

    JSON is one object with a key per table: a list of rows (for a frame), or any plain value. Its
    numbers are finite: missing is null, and infinite numbers are the texts "inf" and "-inf". CSV
    is the first table, which is a frame; missing is empty.
    """
    if output == "csv":
        next(iter(tables.values())).to_csv(sys.stdout, index=False)
    else:
        click.echo(json.dumps(_plain(tables), indent=1, allow_nan=False, default=str))


def _plain(value: Any) -> Any:
    """``value`` for JSON."""
    if hasattr(value, "to_dict"):  # a frame
        value = value.to_dict("records")
    if hasattr(value, "tolist"):  # an array or a number of numpy
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def say(line: str) -> None:
    """Print a line of progress or a hint on stderr; nothing with ``-q``."""
    context = click.get_current_context(silent=True)
    if context is None or not context.meta.get(QUIET):
        click.echo(line, err=True)


def text_width() -> int:
    """The columns of a line of text."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def print_sentences(sentences: Iterable[str]) -> None:
    """Print a list of sentences, each from a line of its own."""
    for sentence in sentences:
        line = printable(sentence, MOST_CHARACTERS)
        click.echo(textwrap.fill(line, text_width(), initial_indent="- ", subsequent_indent="  "))


def plots_folder(study_dir: Path) -> Path:
    """The folder of a study's figures: ``plots_dir/NAME``, by the configuration of a cell.

    A record may come from somebody else, so only a folder beside ``results_dir`` is taken from it.
    """
    from study.store import cell_folders, read_record

    records = filter(None, map(read_record, cell_folders(study_dir)))
    config: dict[str, object] = next((r["config"] for r in records if r["config"]), {})
    results, plots = (Path(str(config.get(key, ""))) for key in ("results_dir", "plots_dir"))
    place, depth = study_dir.absolute(), len(results.parts)
    is_beside = not any(path.is_absolute() or ".." in path.parts for path in (results, plots))
    is_here = place.parts[-1 - depth : -1] == results.parts  # it was not moved
    if config and is_beside and is_here:
        return Path(os.path.relpath(place.parents[depth] / plots / study_dir.name))
    return study_dir.parent.parent / "plots" / study_dir.name


PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
"""For a command that parses its own arguments."""
