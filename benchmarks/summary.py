"""The tables of the suites as text: medians and ratios."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.text import table_of
from study.config.expectations import NOT_MEASURED

LABELS = {
    "trainer": "PEFT + Trainer",
    "flattened": "PEFT + Trainer, flattened",
    "loop": "PEFT, tuned loop",
    "alone": "ours, one cell at a time",
    "packed": "ours, packed",
    "compiled": "ours, packed and compiled",
}
"""The ways to train, by the name of the way."""
PLAIN = "no probes"
"""The single steps of the suite ``probes`` that its other steps are compared with."""
OURS = "packed"
"""The way of `study train`."""


def summarise(tables: Mapping[str, pd.DataFrame]) -> str:
    """A section of Markdown for each suite that has a table."""
    heads = {name: "{device}, {model}".format(**t.iloc[0]) for name, t in tables.items()}
    shown = [name for name in SECTIONS if name in tables]
    return "\n\n".join(f"## {n}\n\n{heads[n]}\n\n{SECTIONS[n](tables[n])}" for n in shown)


def medians(table: pd.DataFrame, *by: str, variant: str = "step") -> pd.DataFrame:
    """Median seconds of a step, or of another variant; a column for each way."""
    steps = table[table["variant"] == variant]
    return steps.groupby([*by, "way"])["seconds"].median().unstack("way")


def _sweep(table: pd.DataFrame) -> str:
    folds = table.loc[table["way"] == "folded", "seconds"]
    table = table[table["way"] != "folded"]
    wall, steps = table.groupby("way")["seconds"].sum(), medians(table, "rank")
    whole = medians(table, "rank", "scaling")
    high = whole[whole.index.get_level_values("rank") >= 1024].sum()
    whole, others = whole.sum(), wall.index.drop(OURS)
    set_up = "included" if (table["variant"] == "set-up").any() else "left out"
    lines = [
        f"- the whole sweep, {LABELS[OURS]} against {LABELS[way]}: "
        f"{wall[way] / wall[OURS]:.2f}x in wall-clock time "
        f"({wall[way]:.0f} s and {wall[OURS]:.0f} s, set-up {set_up}), "
        f"{whole[way] / whole[OURS]:.2f}x by the medians of steps"
        + (f"; ranks from 1024 only: {high[way] / high[OURS]:.2f}x" if high[OURS] > 0 else "")
        for way in others
    ]
    if len(folds):
        seconds = folds.mean()
        ratios = [f"{wall[way] / seconds:.2f}x over {LABELS[way]}" for way in wall.index]
        lines.append(f"- the whole sweep, ours, in folds: {seconds:.0f} s; {', '.join(ratios)}")
    lines += _micro_batches(table)
    shown = steps.rename(columns=LABELS)
    for way in others:
        shown[f"{LABELS[way]} / ours"] = steps[way] / steps[OURS]
    return "\n".join(lines) + f"\n\nSeconds of a step, medians:\n\n{markdown(shown)}"


def _large_steps(table: pd.DataFrame) -> str:
    return _sweep(table[table["variant"] != "set-up"])  # each run has a process of its own


def _micro_batches(table: pd.DataFrame) -> list[str]:
    """The runs that needed more micro-batches than another way at the same rank."""
    most = table.groupby(["way", "rank"])["micro_batches"].max().reset_index()
    least = most.groupby("rank")["micro_batches"].min()
    return [
        f"- rank {rank}, {LABELS[way]}: {parts} micro-batches, because {least[rank]} did not fit"
        for way, rank, parts in most.itertuples(index=False)
        if parts > least[rank]
    ]


def _compiled(table: pd.DataFrame) -> str:
    steps, first = medians(table, "rank"), medians(table, "rank", variant="first step")
    shown = steps.rename(columns=LABELS)
    shown["tuned loop / compiled"] = steps["loop"] / steps["compiled"]
    shown["first step, compiled"] = first["compiled"]
    saved = steps["packed"] - steps["compiled"]
    pays_from = np.ceil((first["compiled"] - first["packed"]) / saved.where(saved > 0))
    shown["pays from step"] = [f"{step:.0f}" if step > 0 else "never" for step in pays_from]
    return f"Seconds of a step, medians:\n\n{markdown(shown)}"


def _bf16(table: pd.DataFrame) -> str:
    steps = medians(table, "rank")
    steps["concatenated / factored"] = steps["concatenated"] / steps["factored"]
    return f"Seconds of a step, medians:\n\n{markdown(steps)}"


def processor(table: pd.DataFrame) -> str:
    """The processor that a table was measured on, or several, as people call it."""
    names = [str(device).partition(",")[0] for device in table["device"].unique()]
    return ", ".join(re.sub(r"\(R\)| Processor", "", name) for name in names)


def _probes(table: pd.DataFrame) -> str:
    more = 100 * (ratios_to("off", table[table["way"] == OURS]) - 1)
    lines = [
        f"- {variant}: {percent.median():+.1f} % ({percent.min():+.1f} to {percent.max():+.1f})"
        for variant, percent in more.items()
    ]
    steps = table[table["way"] == "fold"]
    shown = {
        f"rank {rank}, {tokens} tokens": ratios_to(PLAIN, rows).median()
        for (rank, tokens), rows in steps.groupby(["rank", "tokens"])
    }
    if shown:
        ratios = pd.DataFrame(shown).reindex(steps["variant"].unique()).dropna(how="all")
        lines += ["", "A probed step over a plain one, medians, by what it measures:", ""]
        lines.append(markdown(ratios.rename_axis("measured")))
    return "\n".join(lines)


def ratios_to(plain: str, table: pd.DataFrame) -> pd.DataFrame:
    """The time of each variant over that of the variant ``plain``, a row for each turn."""
    turn = table.groupby("variant").cumcount()
    seconds = table.assign(turn=turn).pivot(index="turn", columns="variant", values="seconds")
    return seconds.div(seconds[plain], axis=0).drop(columns=plain)


SECTIONS: dict[str, Callable[[pd.DataFrame], str]] = {
    "sweep": _sweep,
    "large-steps": _large_steps,
    "compiled": _compiled,
    "probes": _probes,
    "bf16": _bf16,
}
"""The section of each suite."""


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, numbers with three significant digits; NaN as "not measured"."""

    def entry(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return NOT_MEASURED if np.isnan(value) else f"{value:#.3g}".rstrip(".")

    return table_of(table.reset_index().map(entry).to_dict("records"))
