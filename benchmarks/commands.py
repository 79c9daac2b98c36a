"""The command ``study bench``: its suites.

The help is instant: torch, PEFT and pandas are imported when something is timed.
"""

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from study.errors import StudyError
from study.vocabulary.extras import install

SUITES = {
    "sweep": "All ranks under both rules, 1024 tokens a step, all four ways.",
    "large-steps": "All ranks, 4096 tokens a step, tuned loop against ours.",
    "compiled": "All ranks, five steps of 1024 tokens, also with pack.compile.",
    "probes": "Runs and single steps with and without probes.",
    "bf16": "All ranks in bf16, 1024 tokens a step: two products, and one that rounds once.",
}
"""What is timed, by name, in the order in which it runs."""
FULL = "xbrl_extract"
"""The data of every table that names no other: full sequences, so that nothing is padding."""
LISTS = "\b\nSuites:\n" + "\n".join(f"  {name:<12} {about}" for name, about in SUITES.items())


PATH = click.Path(path_type=Path)
SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.command(epilog=LISTS, context_settings=SETTINGS)
@click.argument("names", nargs=-1, type=click.Choice([*SUITES]), metavar="[SUITE]...")
@click.option("--to", type=PATH, default="results/bench", help="The tables, one for each suite.")
@click.option("--model", default="smollm2", help="smollm2, tiny, a folder or a hub name.")
@click.option("--ranks", default="4,16,64,256,1024,2048", help="Ranks of a sweep.")
@click.option("--steps", default=3, help="Optimizer steps of a run.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--precision", type=click.Choice(["float32", "bf16"]), default="float32")
@click.option("--tokens", default=1024, help="Tokens of a step in sweep.")
@click.option("--data", default=FULL, help="Of a sweep: a name of conf/data, or a file of rows.")
@click.option("--measured/--read", default=True, help="Measure, or only read earlier tables.")
def suites(names: tuple[str, ...], to: Path, ranks: str, measured: bool, **options: Any) -> None:
    """Time training against PEFT, suite by suite.

    Without a SUITE all of them run: more than an hour on two cores.
    """
    if find_spec("peft") is None:
        raise StudyError(
            f"study bench measures PEFT too, and PEFT is not installed: {install('bench')}"
        )
    import pandas as pd

    from . import training
    from .summary import summarise

    size = training.Size(ranks=[int(rank) for rank in ranks.split(",")], **options)
    to.mkdir(parents=True, exist_ok=True)
    kind = "" if size.data == FULL else f"-{Path(size.data).stem}"
    kind += "" if size.precision == "float32" else f"-{size.precision}"
    files = {name: to / f"{name}{kind}.parquet" for name in SUITES}
    for name in (names or tuple(SUITES)) if measured else ():
        click.echo(f"{name}: {SUITES[name]}", err=True)
        # In a process of its own: memory that its allocator keeps is free again for the next suite.
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            rows = pool.submit(training.measure, training.RUNS[name], size).result()
        rows.sort_values("rank", kind="stable").to_parquet(files[name], index=False)
    tables = {name: pd.read_parquet(path) for name, path in files.items() if path.exists()}
    click.echo(summarise(tables))
