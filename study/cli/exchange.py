"""The commands that exchange adapters and configurations with other tools."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from study.cli.group import PATH, STUDY_DIR, cli, say
from study.cli.texts import print_sentences, print_texts
from study.integrations.configs import read_file
from study.integrations.configs.writing import write


@cli.command()
@STUDY_DIR
@click.argument("cell")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--fold-scaling", is_flag=True, help="Put gamma into B, for servers that ignore use_rslora."
)
def export(study_dir: Path, cell: str, folder: Path, fold_scaling: bool) -> None:
    """CELL is an id or the start of one. It must have been trained with train.save_adapter=true."""
    from study.integrations import exporting

    click.echo(exporting.export(study_dir, cell, folder, fold_scaling))


@cli.command()
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("out", type=PATH, metavar="OUT")
def fold(folder: Path, out: Path) -> None:
    """OUT has the factor in B, lora_alpha = r and neither use_rslora nor patterns."""
    from study.integrations import exporting

    click.echo(exporting.fold(folder, out))


@cli.command("serve-check")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--url", help="Ask a running server, such as http://localhost:8000.")
@click.option("--base", help="The server's base: a folder or a hub name.  [default: the adapter's]")
@click.option("--served", metavar="NAME", help="The adapter's name on the server.")
@click.option("--remote", is_flag=True, help="Ask a server on another machine too.")
def serve_check(folder: Path, url: str | None, **options: Any) -> None:
    """The sources are each server's issues, changes and code. With --url, a server with the adapter
    is asked for log-probabilities. PEFT's on this machine give the factor that the server uses.
    """
    from study.integrations import serving
    from study.training.peft_format import read_adapter

    adapter = read_adapter(folder, with_others=True)
    rows = serving.served(adapter)
    print_texts("What multiplies B A", rows.round(4).astype(str))
    if url:
        print_sentences([serving.ask(folder, adapter, url, **options).verdict(adapter)])
    else:
        print_sentences([serving.verdict(rows)])


@cli.command("import")
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def import_(folder: Path, overrides: tuple[str, ...]) -> None:
    """The commands continue to train the adapter in DIR, or only measure it. Its base is the one
    that it names, or model=... model.path=...
    """
    from study.integrations import exporting

    for line in exporting.inspect_adapter(folder, overrides):
        click.echo(line)


def reads_config(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a command that reads a configuration: its file and its options."""
    folder: dict[str, Any] = {"default": Path("conf"), "show_default": True, "metavar": "FOLDER"}
    base = "The model to train: a folder or a hub name.  [default: the file's]"
    name = "Name of the experiment.  [default: that of the entry or the file]"
    for option in (
        click.option("--force", is_flag=True, help="Overwrite existing files."),
        click.option("--to", type=PATH, **folder, help="Configuration folder to write to."),
        click.option("--name", help=name),
        click.option("--base", help=base),
        click.option("--entry", help="The configuration to read, if the file holds several."),
        click.argument("file", type=PATH, metavar="FILE"),
    ):
        command = option(command)
    return command


@cli.command("import-config")
@reads_config
def import_config(**options: Any) -> None:
    """Writes it as an experiment and prints the command that trains it."""
    _import_config({}, **options)


@cli.command("sweep-from")
@click.option("--ranks", default="4,16,64,256", show_default=True, help="Ranks to train.")
@click.option(
    "--rules",
    default="lora,rslora",
    show_default=True,
    help="Scaling rules to train. A number is the p of alpha/r**p.",
)
@click.option("--seeds", default="", help="Seeds, such as 0,1,2.  [default: the file's seed]")
@reads_config
def sweep_from(ranks: str, rules: str, seeds: str, **options: Any) -> None:
    """Writes it as an experiment with these ranks and rules, and prints the command."""
    lists = {"adapter.scaling": _list(rules), "adapter.rank": _list(ranks), "seed": _list(seeds)}
    _import_config({key: values for key, values in lists.items() if values}, **options)


def _list(text: str) -> list[int | str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isdecimal() and len(part) < 20 else part for part in parts]


def _import_config(
    swept: dict[str, list[Any]], file: Path, to: Path, force: bool, **told: str | None
) -> None:
    experiment = read_file(file, told["entry"], base=told["base"])
    experiment.sweep = swept
    chosen = re.sub(r"[^\w-]+", "_", told["name"] or told["entry"] or file.stem)
    paths, command = write(experiment, chosen, to, force=force)
    for line in (*experiment.lines(), *(f"wrote {path}" for path in paths)):
        say(line)
    click.echo(command)
