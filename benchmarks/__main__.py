"""``study bench``: the fastest way to train a rank sweep, measured against what people use today.

``study bench`` runs every suite (an hour on two cores); ``study bench sweep probes`` those. Rows go to
``results/bench/SUITE.parquet``, what they come to is printed, and a figure is drawn from what is there.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import inference
import pandas as pd
import torch
from inference_costs import inference_costs, inference_verdict, render_inference
from inference_figure import infer_cost
from rich.console import Console
from suites import SUITES, Size, device_name, rows_of
from summary import report

from study.errors import StudyError
from study.figures.style import save
from study.store import write_derived


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[SUITE]...")
@click.option(
    "--to", type=click.Path(path_type=Path), default=Path("results/bench"), show_default=True
)
@click.option(
    "--plots", type=click.Path(path_type=Path), default=Path("plots/bench"), show_default=True
)
@click.option(
    "--model", type=click.Choice(["smollm2", "tiny"]), default="smollm2", show_default=True
)
@click.option("--ranks", default="4,16,64,256,1024,2048", show_default=True)
@click.option("--steps", default=3, show_default=True, help="Optimizer steps of a run.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--measured/--read",
    default=True,
    help="Measure, or only read what was measured and print it again.",
)
def main(
    names: tuple[str, ...],
    to: Path,
    plots: Path,
    model: str,
    ranks: str,
    steps: int,
    device: str,
    measured: bool,
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
        table = pd.DataFrame(rows).assign(
            device=device_name(size), model=model, torch=torch.__version__
        )
        table.to_parquet(to / f"{name}.parquet", index=False)
    tables = {
        name: pd.read_parquet(to / f"{name}.parquet")
        for name in SUITES
        if (to / f"{name}.parquet").exists()
    }
    text, figure = report(tables)
    click.echo(text)
    if figure is not None:
        for path in save(figure, plots, "speed"):
            click.echo(path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model", default="smollm2", show_default=True, help="smollm2, tiny, a folder or a hub name."
)
@click.option(
    "--ranks", default="4,32,256,2048", show_default=True, help="Ranks, each under both rules."
)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each form."
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
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    default=Path("plots/infer_cost"),
    show_default=True,
)
def time_inference(ranks: str, to: Path, plots: Path, **asked: Any) -> None:
    """Time the base model, merged adapters and unmerged adapters in turns."""
    listed = [rank.strip() for rank in ranks.split(",") if rank.strip()]
    if not all(rank.isdecimal() and int(rank) > 0 for rank in listed):
        raise StudyError(
            f"--ranks={ranks} is no list of ranks: give whole numbers such as 256,1024"
        )
    timings = inference.run(
        ranks=[int(rank) for rank in listed], **asked, say=lambda line: click.echo(line, err=True)
    )
    costs = inference_costs(timings)
    Console().print(render_inference(costs))
    click.echo(inference_verdict(costs))
    to.mkdir(parents=True, exist_ok=True)
    table = write_derived(to, "infer_cost", timings)
    for path in (table, *save(infer_cost(timings), plots, "infer_cost")):
        click.echo(path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["inference"]:
        time_inference(sys.argv[2:], prog_name="study bench inference", standalone_mode=False)
    elif find_spec("peft") is None:
        raise StudyError(
            "study bench trains with PEFT beside us, and it is not installed: pip install 'study[bench]'"
        )
    else:
        main(prog_name="study bench")
