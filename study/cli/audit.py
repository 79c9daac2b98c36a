"""The command ``study audit``."""

from pathlib import Path

import click
from rich.console import Console

from study.analysis.terminal import render_texts
from study.cli.group import PATH, cli, print_sentences, print_tables, say, tables_as
from study.figures import save
from study.figures.audit import adapter_tiles


@cli.command()
@click.argument("folder", type=PATH, metavar="ADAPTER_DIR")
@click.option(
    "--base",
    metavar="MODEL",
    help="Its base: a folder, a hub name, smollm2, gemma3 or tiny. Compares with its weights.",
)
@click.option("--to", type=PATH, help="Folder of the figure.  [default: plots/NAME]")
@tables_as
def audit(folder: Path, base: str | None, to: Path | None, output: str | None) -> None:
    """Examine a PEFT adapter: rule, gamma, size and rank of each layer.

    Prints what is multiplied, which layers have not moved, how large gamma B A is (and next to W0,
    with --base), how many directions it uses, and what a server that ignores use_rslora would do.
    Draws audit.png and .pdf, every layer as a tile.
    """
    from study.integrations.auditing import audit as examine
    from study.integrations.auditing import by_kind, findings

    adapter, rows = examine(folder, base)
    sentences = findings(adapter, rows)
    if output:
        print_tables(output, layers=rows, rule=adapter.scaling, base=base, findings=sentences)
        return
    caption = "medians over layers; stable and effective rank: how many directions γBA has"
    Console().print(render_texts("What the adapter adds", by_kind(rows), caption))
    print_sentences(sentences)
    for path in save(adapter_tiles(rows), to or Path("plots", folder.resolve().name), "audit"):
        say(str(path))
