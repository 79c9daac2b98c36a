"""The command ``study bench``: its suites, and the two benchmarks beside them.

The help is instant: torch, PEFT and pandas are imported when something is timed.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from study.errors import StudyError, unknown
from study.vocabulary.extras import install

if TYPE_CHECKING:
    import pandas as pd

    from .suites import Size

SUITES = {
    "sweep": "All ranks under both rules, 1024 tokens a step, all four ways.",
    "large-steps": "All ranks, 4096 tokens a step, tuned loop against ours.",
    "compiled": "Five steps of 1024 tokens at all ranks: tuned loop, ours, and ours with "
    "pack.compile.",
    "probes": "Twenty steps at a low rank, with and without probes, three times in turn; single "
    "steps at ranks 16 and 1024 by the sites that they measure.",
    "bf16": "Ours in float32 and in bf16 in turn, and the tuned loop in bf16.",
    "folds": "All ranks under both rules in one pack: a cell in a forward pass against as many as "
    "pack.fold=auto chooses.",
}
"""What is timed against PEFT, by name, in the order in which it runs."""
SETTINGS = {"help_option_names": ["-h", "--help"]}


def folder(default: str, what: str, option: str = "--to") -> Any:
    """The option of a folder."""
    where = click.Path(path_type=Path)
    return click.option(option, type=where, default=Path(default), show_default=True, help=what)


def main(arguments: Sequence[str]) -> None:
    """Run ``study bench`` with ``arguments``."""
    beside = {"inference": inference, "scale": scale}
    if arguments and arguments[0] in beside:
        command, name, rest = beside[arguments[0]], f"study bench {arguments[0]}", arguments[1:]
    else:
        command, name, rest = suites, "study bench", arguments
    command.main(list(rest), name, standalone_mode=False)


class SuitesCommand(click.Command):
    """A command whose help lists the suites and the other benchmarks."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two lists below the options."""
        with formatter.section("Suites"):
            formatter.write_dl(list(SUITES.items()))
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    ("inference", "What merged and unmerged adapters cost at inference."),
                    ("scale", "What the commands take on a study of many tiny cells."),
                ]
            )


@click.command(cls=SuitesCommand, context_settings=SETTINGS)
@click.argument("names", nargs=-1, metavar="[SUITE]... | inference | scale")
@folder("results/bench", "Folder of the tables, one for each suite.")
@folder("plots/bench", "Folder of the figure.", "--plots")
@click.option(
    "--model", type=click.Choice(["smollm2", "tiny"]), default="smollm2", show_default=True
)
@click.option(
    "--ranks", default="4,16,64,256,1024,2048", show_default=True, help="Ranks of a sweep."
)
@click.option("--steps", default=3, show_default=True, help="Optimizer steps of a run.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--precision", type=click.Choice(["float32", "bf16"]), default="float32", show_default=True
)
@click.option(
    "--add", is_flag=True, help="Keep the rows of other ranks that a table of this machine has."
)
@click.option(
    "--measured/--read",
    default=True,
    help="Measure, or only summarise the tables of an earlier run.",
)
def suites(
    names: tuple[str, ...],
    to: Path,
    plots: Path,
    model: str,
    ranks: str,
    steps: int,
    device: str,
    precision: str,
    add: bool,
    measured: bool,
) -> None:
    """Time training against PEFT, suite by suite.

    Without a SUITE all of them run: about an hour on two cores.
    """
    for name in names:
        if name not in SUITES:
            raise unknown("suite", name, SUITES)
    if find_spec("peft") is None:
        raise StudyError(
            f"study bench trains with PEFT too, and PEFT is not installed: {install('bench')}"
        )
    import pandas as pd

    from study.figures.style import save

    from .suites import Size
    from .summary import speed, summarise

    size = Size(model, [int(rank) for rank in ranks.split(",")], steps, device, precision)
    to.mkdir(parents=True, exist_ok=True)
    for name in (names or tuple(SUITES)) if measured else ():
        path = to / f"{name}.parquet"
        kept = [earlier_rows(path, size)] if add and path.exists() else []
        rows = pd.concat([*kept, _time_suite(name, size)])
        rows.sort_values("rank", kind="stable").to_parquet(path, index=False)
    tables = {
        name: pd.read_parquet(to / f"{name}.parquet")
        for name in SUITES
        if (to / f"{name}.parquet").exists()
    }
    click.echo(summarise(tables))
    if "sweep" in tables:
        for path in save(speed(tables["sweep"], tables.get("large-steps")), plots, "speed"):
            click.echo(path)


def earlier_rows(path: Path, size: "Size") -> "pd.DataFrame":
    """The rows of a table without those of the ranks that are measured now.

    Raises :class:`StudyError` if it was measured on another machine or model.
    """
    import pandas as pd

    from .suites import device_name

    rows = pd.read_parquet(path)
    for column, now in (("device", device_name(size)), ("model", size.model)):
        was = rows[column].iloc[0]
        if was != now:
            raise StudyError(
                f"{path} has {column} {was!r}, and this run has {now!r}, so --add can't join them: "
                "choose another folder with --to"
            )
    return rows[~rows["rank"].isin(size.ranks)]


def _time_suite(name: str, size: "Size") -> "pd.DataFrame":
    """The rows of a suite, measured in a process of its own.

    Memory that one suite's allocator keeps is thus free again for the next.
    """
    import pandas as pd
    import torch

    from .suites import device_name, rows_of

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rows = pool.submit(rows_of, name, size).result()
    return pd.DataFrame(rows).assign(
        device=device_name(size), model=size.model, torch=torch.__version__
    )


@click.command(context_settings=SETTINGS)
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
    "--tokens", default=256, show_default=True, type=click.IntRange(2), help="Tokens of a prefill."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bf16.")
@folder("results/infer_cost", "Folder of the table.")
@folder("plots/infer_cost", "Folder of the figure.", "--plots")
@click.option(
    "--measured/--read",
    default=True,
    help="Measure, or only print and draw the table of an earlier run.",
)
def inference(ranks: str, to: Path, plots: Path, measured: bool, **options: Any) -> None:
    """Time the base model, merged adapters and unmerged adapters in turns."""
    import pandas as pd
    from rich.console import Console

    from study.cli.group import say
    from study.cli.tables import rank_list
    from study.figures.style import save

    from .inference_costs import infer_cost, inference_costs, inference_verdict, render_inference

    table = to / "infer_cost.parquet"
    if measured:
        from .inference import run

        timings = run(ranks=rank_list("--ranks", ranks), **options, say=say)
        to.mkdir(parents=True, exist_ok=True)
        timings.to_parquet(table, index=False)
    elif not table.exists():
        raise StudyError(f"no {table} to read: measure without --read, or choose another --to")
    timings = pd.read_parquet(table)
    costs = inference_costs(timings)
    Console().print(render_inference(costs))
    click.echo(inference_verdict(costs))
    for path in (table, *save(infer_cost(timings), plots, "infer_cost")):
        click.echo(path)


@click.command(context_settings=SETTINGS)
@click.option("--cells", default=200, show_default=True, type=click.IntRange(1))
def scale(cells: int) -> None:
    """Train a study of many tiny cells, then time each command on it.

    Prints wall-clock seconds, processor seconds and the peak of memory of every command.
    """
    from .scale import costs

    for line in costs(cells):
        click.echo(line)
