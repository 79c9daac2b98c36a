"""The command group ``study``, and the arguments that several commands share."""

import os
from pathlib import Path
from typing import Any

import click

from study import __version__
from study.errors import given

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


def plots_folder(study_dir: Path) -> Path:
    """The folder of a study's figures: ``plots_dir/NAME``, by the configuration of a cell.

    A record may come from somebody else, so only a folder beside ``results_dir`` is taken from it.
    For any other, the default is used, and a line says how to choose that one.
    """
    from study.store import cell_folders, read_record

    usual = study_dir.parent.parent / "plots" / study_dir.name
    records = filter(None, map(read_record, cell_folders(study_dir)))
    config: dict[str, object] = next((r["config"] for r in records if r["config"]), {})
    results, plots = config.get("results_dir"), config.get("plots_dir")
    if not isinstance(results, str) or not isinstance(plots, str) or plots == "plots":
        return usual
    if any(Path(path).is_absolute() or ".." in Path(path).parts for path in (results, plots)):
        say(
            f"figures are in {usual}; the study was trained with plots_dir={given(plots)}, which "
            "--to and, for study report, --plots can name"
        )
        return usual
    depth = len(Path(results).parts)
    place = study_dir.absolute()
    if place.parts[-1 - depth : -1] != Path(results).parts:  # it was moved
        return usual
    return Path(os.path.relpath(place.parents[depth] / plots / study_dir.name))


PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
"""For a command that parses its own arguments."""
