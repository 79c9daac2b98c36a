"""``study bench inference``: time adapters at inference, print the costs, write and draw them."""

from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.console import Console

from study.cli.group import say
from study.cli.tables import rank_list
from study.errors import StudyError
from study.figures.style import save
from study.store import write_table

from . import timing
from .costs import inference_costs, inference_verdict, render_inference
from .figure import infer_cost

NAME = "infer_cost"
"""Of the table and of the figure."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model", default="smollm2", show_default=True, help="smollm2, tiny, a folder or a hub name."
)
@click.option(
    "--ranks", default="4,32,256,2048", show_default=True, help="Ranks, each under both rules."
)
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Rounds; each times every form once, and the base three times.",
)
@click.option(
    "--tokens",
    default=256,
    show_default=True,
    type=click.IntRange(2),
    help="Tokens of a prefill.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bf16.")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path("results/infer_cost"),
    show_default=True,
    help="Folder of the table.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    default=Path("plots/infer_cost"),
    show_default=True,
    help="Folder of the figure.",
)
@click.option(
    "--measured/--read",
    default=True,
    help="Measure, or only print and draw the table of an earlier run.",
)
def inference(ranks: str, to: Path, plots: Path, measured: bool, **options: Any) -> None:
    """Time the base model, merged adapters and unmerged adapters in turns."""
    table = to / f"{NAME}.parquet"
    if measured:
        timings = timing.run(ranks=rank_list("--ranks", ranks), **options, say=say)
        to.mkdir(parents=True, exist_ok=True)
        write_table(to / f"{NAME}.parquet", timings)
    elif not table.exists():
        raise StudyError(f"no {table} to read: measure without --read, or choose another --to")
    timings = pd.read_parquet(table)
    costs = inference_costs(timings)
    Console().print(render_inference(costs))
    click.echo(inference_verdict(costs))
    for path in (table, *save(infer_cost(timings), plots, NAME)):
        click.echo(path)
