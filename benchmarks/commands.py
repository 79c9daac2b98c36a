"""The command ``study bench``: its suites.

The help is instant: torch, PEFT and pandas are imported when something is timed.
"""

from collections.abc import Sequence
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
    "limits": "Steps of 192, 1024 and 4096 tokens, against the limits of this machine.",
    "inference": "All ranks under both rules, merged and unmerged adapters against the base.",
}
"""What is timed, by name, in the order in which it runs."""
FULL = "xbrl_extract"
"""The data of every table that names no other: full sequences, so that nothing is padding."""
LISTS = "\b\nSuites:\n" + "\n".join(f"  {name:<12} {about}" for name, about in SUITES.items())


def shown(default: Any, what: str = "", **more: Any) -> dict[str, Any]:
    """The settings of an option whose default is in the help."""
    return {"default": default, "show_default": True, "help": what, **more}


def folder(default: str, what: str) -> dict[str, Any]:
    """The settings of an option that is a folder."""
    return shown(Path(default), what, type=click.Path(path_type=Path))


def main(arguments: Sequence[str]) -> None:
    """Run ``study bench`` with ``arguments``."""
    suites.main(list(arguments), "study bench", standalone_mode=False)


@click.command(epilog=LISTS, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice([*SUITES]), metavar="[SUITE]...")
@click.option("--to", **folder("results/bench", "Folder of the tables, one for each suite."))
@click.option("--plots", **folder("plots/bench", "Folder of the figures."))
@click.option("--model", **shown("smollm2", "smollm2, tiny, a folder or a hub name."))
@click.option("--ranks", **shown("4,16,64,256,1024,2048", "Ranks of a sweep."))
@click.option("--steps", **shown(3, "Optimizer steps of a run."))
@click.option("--device", **shown("auto", type=click.Choice(["auto", "cpu", "cuda"])))
@click.option("--precision", **shown("float32", type=click.Choice(["float32", "bf16"])))
@click.option("--tokens", **shown(1024, "Tokens of a step in sweep."))
@click.option("--data", **shown(FULL, "Of a sweep: a name of conf/data, or a file of rows."))
@click.option("--measured/--read", **shown(True, "Measure, or only summarise earlier tables."))
def suites(
    names: tuple[str, ...],
    to: Path,
    plots: Path,
    ranks: str,
    measured: bool,
    **options: Any,
) -> None:
    """Time training against PEFT, and adapters at inference, suite by suite.

    Without a SUITE all of them run: more than an hour on two cores.
    """
    if find_spec("peft") is None:
        raise StudyError(
            f"study bench measures PEFT too, and PEFT is not installed: {install('bench')}"
        )
    import pandas as pd

    from study.figures.style import save

    from . import inference, training
    from .summary import speed, summarise

    size = training.Size(ranks=[int(rank) for rank in ranks.split(",")], **options)
    to.mkdir(parents=True, exist_ok=True)
    kind = "" if size.data == FULL else f"-{Path(size.data).stem}"
    kind += "" if size.precision == "float32" else f"-{size.precision}"
    files = {name: to / f"{name}{kind}.parquet" for name in SUITES}
    for name in (names or tuple(SUITES)) if measured else ():
        click.echo(f"{name}: {SUITES[name]}", err=True)
        run = inference.rounds if name == "inference" else training.RUNS[name]
        # In a process of its own: memory that its allocator keeps is free again for the next suite.
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            rows = pool.submit(training.measure, run, size).result()
        rows.sort_values("rank", kind="stable").to_parquet(files[name], index=False)
    tables = {name: pd.read_parquet(path) for name, path in files.items() if path.exists()}
    click.echo(summarise(tables))
    if "sweep" in tables:
        for path in save(speed(tables["sweep"], tables.get("large-steps")), plots, "speed"):
            click.echo(path)
