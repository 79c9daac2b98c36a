"""The command ``study bench``: its suites, and the benchmark of inference beside them.

The help is instant: torch, PEFT and pandas are imported when something is timed.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from study.errors import StudyError, unknown
from study.vocabulary.extras import install

SUITES = {
    "sweep": "All ranks under both rules, 1024 tokens a step, all four ways.",
    "large-steps": "All ranks, 4096 tokens a step, tuned loop against ours.",
    "compiled": "All ranks, five steps of 1024 tokens, also with pack.compile.",
    "probes": "Runs and single steps with and without probes.",
    "bf16": "All ranks in bf16, 1024 tokens a step: two products, and one that rounds once.",
    "limits": "Steps of 192, 1024 and 4096 tokens, against the limits of this machine.",
}
"""What is timed against PEFT, by name, in the order in which it runs."""
FULL = "xbrl_extract"
"""The data of every table that names no other: full sequences, so that nothing is padding."""
LISTS = "\b\nSuites:\n" + "\n".join(f"  {name:<12} {about}" for name, about in SUITES.items())
INFERENCE = "\n\n\b\nAnd what merged and unmerged adapters cost: study bench inference"


def shown(default: Any, what: str = "", **more: Any) -> dict[str, Any]:
    """The settings of an option whose default is in the help."""
    return {"default": default, "show_default": True, "help": what, **more}


def folder(default: str, what: str) -> dict[str, Any]:
    """The settings of an option that is a folder."""
    return shown(Path(default), what, type=click.Path(path_type=Path))


def main(arguments: Sequence[str]) -> None:
    """Run ``study bench`` with ``arguments``."""
    if arguments and arguments[0] == "inference":
        inference.main(list(arguments[1:]), "study bench inference", standalone_mode=False)
    else:
        suites.main(list(arguments), "study bench", standalone_mode=False)


def need_peft() -> None:
    if find_spec("peft") is None:
        raise StudyError(
            f"study bench measures PEFT too, and PEFT is not installed: {install('bench')}"
        )


@click.command(epilog=LISTS + INFERENCE, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[SUITE]... | inference")
@click.option("--to", **folder("results/bench", "Folder of the tables, one for each suite."))
@click.option("--plots", **folder("plots/bench", "Folder of the figure."))
@click.option("--model", **shown("smollm2", type=click.Choice(["smollm2", "tiny"])))
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
    """Time training against PEFT, suite by suite.

    Without a SUITE all of them run: about an hour on two cores.
    """
    for name in names:
        if name not in SUITES:
            raise unknown("suite", name, SUITES)
    need_peft()
    import pandas as pd

    from study.figures.style import save

    from .summary import speed, summarise
    from .training import Size, measure

    size = Size(ranks=[int(rank) for rank in ranks.split(",")], **options)
    to.mkdir(parents=True, exist_ok=True)
    kind = "" if size.data == FULL else f"-{Path(size.data).stem}"
    kind += "" if size.precision == "float32" else f"-{size.precision}"
    for name in (names or tuple(SUITES)) if measured else ():
        path = to / f"{name}{kind}.parquet"
        # In a process of its own: memory that its allocator keeps is free again for the next suite.
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            rows = pool.submit(measure, name, size).result()
        rows.sort_values("rank", kind="stable").to_parquet(path, index=False)
    files = {name: to / f"{name}{kind}.parquet" for name in SUITES}
    tables = {name: pd.read_parquet(path) for name, path in files.items() if path.exists()}
    click.echo(summarise(tables))
    if "sweep" in tables:
        for path in save(speed(tables["sweep"], tables.get("large-steps")), plots, "speed"):
            click.echo(path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", **shown("smollm2", "smollm2, tiny, a folder or a hub name."))
@click.option("--ranks", **shown("4,32,256,2048", "Ranks, each under both rules."))
@click.option("--rounds", **shown(5, "Rounds of all forms.", type=click.IntRange(1)))
@click.option("--tokens", **shown(256, "Tokens of a prefill.", type=click.IntRange(2)))
@click.option("--device", **shown("auto", type=click.Choice(["auto", "cpu", "cuda"])))
@click.option("--precision", **shown("float32", type=click.Choice(["float32", "bf16"])))
@click.option("--to", **folder("results/infer_cost", "Folder of the table."))
@click.option("--plots", **folder("plots/infer_cost", "Folder of the figure."))
@click.option("--measured/--read", **shown(True, "Measure, or only show an earlier table."))
def inference(ranks: str, to: Path, plots: Path, measured: bool, **options: Any) -> None:
    """Time the base model, merged adapters and unmerged adapters in turns."""
    import pandas as pd

    from study.cli.group import say
    from study.figures.style import save

    from .inference_costs import infer_cost, inference_costs, inference_verdict

    table = to / "infer_cost.parquet"
    if measured:
        need_peft()
        from .inference import measure

        timings = measure(ranks=[int(rank) for rank in ranks.split(",")], **options, say=say)
        to.mkdir(parents=True, exist_ok=True)
        timings.to_parquet(table, index=False)
    elif not table.exists():
        raise StudyError(f"no {table} to read: measure without --read, or choose another --to")
    timings = pd.read_parquet(table)
    costs = inference_costs(timings)
    columns = ["phase", "form", "scaling", "rank", "seconds", "ratio", "ratio_low", "ratio_high"]
    shown_costs = costs[[*columns, "weights_gb"]]
    click.echo(shown_costs.to_string(index=False, float_format="{:.3f}".format))
    click.echo(inference_verdict(costs))
    for path in (table, *save(infer_cost(timings), plots, "infer_cost")):
        click.echo(path)
