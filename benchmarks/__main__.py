"""``study bench``: the fastest way to train a rank sweep, measured against what people use today.

``study bench`` runs every suite (an hour on two cores); ``study bench sweep probes`` those. Rows go to
``results/bench/SUITE.parquet``, what they come to is printed, and a figure is drawn from what is there.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import pandas as pd
import torch
from suites import SUITES, Size, device_name, rows_of
from summary import report

from study.figures.style import save


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[SUITE]...")
@click.option("--to", type=click.Path(path_type=Path), default=Path("results/bench"), show_default=True)
@click.option("--plots", type=click.Path(path_type=Path), default=Path("plots/bench"), show_default=True)
@click.option("--model", type=click.Choice(["smollm2", "tiny"]), default="smollm2", show_default=True)
@click.option("--ranks", default="4,16,64,256,1024,2048", show_default=True)
@click.option("--steps", default=3, show_default=True, help="Optimizer steps of a run.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--measured/--read", default=True, help="Measure, or only read what was measured and print it again.")
def main(
    names: tuple[str, ...], to: Path, plots: Path, model: str, ranks: str, steps: int, device: str, measured: bool
) -> None:
    """Time training against PEFT. SUITEs: sweep, large-steps, compiled, tokens, short, start-up, probes, bf16, layers.

    No SUITE: all of them.
    """
    for name in names:
        if name not in SUITES:
            raise click.UsageError(f"unknown suite {name!r}: choose from {', '.join(SUITES)}")
    size = Size(model, [int(rank) for rank in ranks.split(",")], steps, device)
    to.mkdir(parents=True, exist_ok=True)
    for name in (names or tuple(SUITES)) if measured else ():
        # In a process of its own: what one suite's allocator keeps is not missing to the next.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows = pool.submit(rows_of, name, size).result()
        table = pd.DataFrame(rows).assign(device=device_name(size), model=model, torch=torch.__version__)
        table.to_parquet(to / f"{name}.parquet", index=False)
    tables = {name: pd.read_parquet(to / f"{name}.parquet") for name in SUITES if (to / f"{name}.parquet").exists()}
    text, figure = report(tables)
    click.echo(text)
    if figure is not None:
        for path in save(figure, plots, "speed"):
            click.echo(path)


if __name__ == "__main__":
    main(prog_name="study bench")
