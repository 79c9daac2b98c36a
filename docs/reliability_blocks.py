"""The blocks of docs/reliability.md and docs/clusters.md: faults, the cost of checkpoints, large
studies, the memory of sharded cells.
"""

import pandas as pd

from benchmarks.checkpoints import summary
from benchmarks.scale.command import BARS, COMMANDS, MOST_GB
from benchmarks.sharded import summary as sharded
from docs.blocks import RESULTS, Block, NoTables
from docs.blocks import table as read
from study.report.markdown import table


def faults() -> str:
    """What the last ``make faults`` that was committed printed."""
    path = RESULTS / "faults.txt"
    if not path.exists():
        raise NoTables(f"no {path.name}: run make faults, and copy results/faults.txt")
    return f"```\n{path.read_text().strip()}\n```"


def checkpoint_cost() -> str:
    """The lines of ``study bench checkpoint --read``."""
    return "\n".join(f"- {line}" for line in summary(read("bench/checkpoint")).splitlines())


def sharded_memory() -> str:
    """The lines of ``study bench sharded --read``."""
    return "\n".join(f"- {line}" for line in sharded(read("bench/sharded")).splitlines())


def large_studies() -> str:
    """Seconds and memory of each command on thousands of tiny cells, beside the bars."""
    rows = read("bench/scale")
    body = [_command(row) for _, row in rows.iterrows() if row["what"] in COMMANDS]
    return table(["command", "cells", "time", "memory", "bar", ""], body)


def _command(row: "pd.Series[float]") -> list[str]:
    name, cells = str(row["what"]), int(row["cells"])
    most = BARS.get(name, {}).get(cells)
    met = most is None or (row["seconds"] <= most and row["peak_gb"] <= MOST_GB)
    return [
        f"`{COMMANDS[name]}`",
        str(cells),
        f"{row['seconds']:.1f} s",
        f"{row['peak_gb']:.2f} GB",
        "" if most is None else f"{most:g} s, {MOST_GB:g} GB",
        "" if most is None else "met" if met else "**missed**",
    ]


BLOCKS: dict[str, Block] = {
    "faults": faults,
    "checkpoint-cost": checkpoint_cost,
    "large-studies": large_studies,
    "sharded-memory": sharded_memory,
}
