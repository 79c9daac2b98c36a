"""How long commands take from their start to their end, against Python with numpy and click.

``python -m benchmarks.start`` runs each line in a process of its own, one after the other, in ten
rounds. So a load of the machine slows down all of them. It prints medians and their ratios.
"""

import subprocess
import sys
import tempfile
import time
from statistics import median

import click

STUDY = "results/reference/quick"
"""The archive that the commands read."""
BARE = {
    "numpy, click": ["-c", "import numpy, click"],
    "numpy": ["-c", "import numpy"],
}
"""What the commands are compared with, as arguments of Python."""


def commands(to: str) -> dict[str, list[str]]:
    """The arguments of ``study`` by name. ``to``: the folder of the report."""
    return {
        "study --help": ["--help"],
        "study advise --rank 64": ["advise", "--rank", "64"],
        "study status": ["status", STUDY],
        "study report": ["report", STUDY, "--to", to],
    }


def seconds(arguments: list[str]) -> float:
    """The time of one process of Python. Raises ``CalledProcessError`` if it fails."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


@click.command()
@click.option("--runs", default=10, show_default=True, help="Rounds.")
@click.option("--only", default="", help="Only the commands whose names contain this text.")
def main(runs: int, only: str) -> None:
    """Print the median time of each command, and its ratio to that of the bare lines."""
    with tempfile.TemporaryDirectory() as to:
        chosen = {name: own for name, own in commands(to).items() if only in name}
        lines = BARE | {name: ["-m", "study", *own] for name, own in chosen.items()}
        times: dict[str, list[float]] = {name: [] for name in lines}
        for _ in range(runs):
            for name, arguments in lines.items():
                times[name].append(seconds(arguments))
    medians = {name: median(own) for name, own in times.items()}
    ratios = "".join(f"{f'over {name}':>19}" for name in BARE)
    click.echo(f"{'':<24}{'median s':>9}{ratios}")
    for name, value in medians.items():
        ratios = "".join(f"{value / medians[bare]:>19.2f}" for bare in BARE)
        click.echo(f"{name:<24}{value:>9.3f}{ratios}")


if __name__ == "__main__":
    main()
