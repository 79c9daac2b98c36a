"""``study bench``: time the suites, write a table for each, summarise the tables and draw them."""

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import click

from study.errors import StudyError, unknown
from study.vocabulary.extras import install

from .listing import SUITES

if TYPE_CHECKING:
    import pandas as pd

    from .suites import Size


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
                    ("checkpoint", "What a checkpoint costs a run, in time and in bytes."),
                    ("scale", "What the commands take on a study of thousands of tiny cells."),
                ]
            )


@click.command(cls=SuitesCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[SUITE]... | inference | checkpoint | scale")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path("results/bench"),
    show_default=True,
    help="Folder of the tables, one for each suite.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    default=Path("plots/bench"),
    show_default=True,
    help="Folder of the figure.",
)
@click.option(
    "--model",
    type=click.Choice(["smollm2", "tiny"]),
    default="smollm2",
    show_default=True,
    help="The base model.",
)
@click.option(
    "--ranks", default="4,16,64,256,1024,2048", show_default=True, help="Ranks of a sweep."
)
@click.option("--steps", default=3, show_default=True, help="Optimizer steps of a run.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bf16"]),
    default="float32",
    show_default=True,
    help="The precision of products.",
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
    # Imported here, because torch and PEFT take seconds, and the help needs neither.
    import pandas as pd

    from study.figures.style import save

    from .figure import speed
    from .suites import Size
    from .summary import summarise

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
