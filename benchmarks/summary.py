"""What the rows come to: medians and ratios as text, and the figure. Pure: tables in."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from study.figures import style

NAMES = {
    "trainer": "PEFT + Trainer",
    "loop": "PEFT, tuned loop",
    "alone": "ours, one cell at a time",
    "packed": "ours, packed",
    "compiled": "ours, packed and compiled",
}
LOOKS = {
    "trainer": ("#8a8a8a", "s"),
    "loop": ("#b0602b", "o"),
    "packed": ("#1f7f86", "D"),
    "alone": ("#7fb7bb", "^"),
}


def report(tables: Mapping[str, pd.DataFrame]) -> tuple[str, Figure | None]:
    """A section for each table that is there, and the figure if the sweep is among them."""
    sections = []
    for name, says in (
        ("sweep", _sweep),
        ("large-steps", _sweep),
        ("compiled", _compiled),
        ("tokens", _tokens),
        ("short", _walls),
        ("start-up", _walls),
        ("probes", _probes),
        ("bf16", _bf16),
        ("layers", _layers),
    ):
        if name in tables:
            table = tables[name]
            sections.append(
                f"## {name}\n\n{table['device'].iloc[0]}, {table['model'].iloc[0]}\n\n{says(table)}"
            )
    drawn = figure(tables["sweep"], tables.get("large-steps")) if "sweep" in tables else None
    return "\n\n".join(sections), drawn


def medians(table: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Median seconds of a step but the first, a column a way."""
    steps = table[table["variant"] == "step"]
    return steps.groupby([*by, "way"])["seconds"].median().unstack("way")


def _sweep(table: pd.DataFrame) -> str:
    wall = table.groupby("way")["seconds"].sum()
    steps = medians(table, "rank")
    whole = medians(table, "rank", "scaling").sum()
    high = medians(table[table["rank"] >= 1024], "rank", "scaling").sum().reindex(wall.index)
    ours = "packed"
    lines = []
    for way in wall.index.drop(ours):
        lines.append(
            f"- the whole sweep, {NAMES[ours]} against {NAMES[way]}: {wall[way] / wall[ours]:.2f}x by the wall clock "
            f"({wall[way]:.0f} s and {wall[ours]:.0f} s, set-up included), {whole[way] / whole[ours]:.2f}x by medians "
            f"of steps; ranks from 1024 alone {high[way] / high[ours]:.2f}x"
        )
    shown = steps.rename(columns=NAMES)
    for way in steps.columns.drop(ours):
        shown[f"{NAMES[way]} / ours"] = steps[way] / steps[ours]
    most = table.groupby(["way", "rank"])["micro_batches"].max()
    least = most.groupby("rank").min()
    for (way, rank), parts in most.items():
        if parts > least[rank]:
            lines.append(
                f"- rank {rank}, {NAMES[way]}: in {parts} micro-batches, as it did not fit in {least[rank]}"
            )
    achieved = _achieved(table[table["way"] == ours])
    return (
        "\n".join(lines)
        + "\n\nSeconds of a step, medians:\n\n"
        + markdown(shown.join(achieved), "rank")
    )


def _compiled(table: pd.DataFrame) -> str:
    steps, firsts = medians(table, "rank"), table[table["variant"] == "first step"]
    shown = steps.rename(columns=NAMES)
    shown["tuned loop / compiled"] = steps["loop"] / steps["compiled"]
    shown["% of peak, compiled"] = _achieved(table[table["way"] == "compiled"])["% of peak"]
    first = firsts.groupby(["rank", "way"])["seconds"].median().unstack("way")
    shown["first step, compiled"] = first["compiled"]
    saved = steps["packed"] - steps["compiled"]
    shown["pays from step"] = np.ceil(
        (first["compiled"] - first["packed"]) / saved.where(saved > 0)
    )
    return "Seconds of a step, medians:\n\n" + markdown(shown, "rank")


def _achieved(table: pd.DataFrame) -> pd.DataFrame:
    """Counted FLOPs over what the device's best matmul rate of the run would do in a step's time, in percent."""
    steps = table[table["variant"] == "step"]
    by_rank = steps.groupby("rank")[
        ["seconds", "base_flops", "adapter_flops", "factored_flops"]
    ].median()
    possible = by_rank["seconds"] * steps["peak"].max()
    return pd.DataFrame(
        {
            "% of peak": 100 * (by_rank["base_flops"] + by_rank["adapter_flops"]) / possible,
            "without adapters": 100 * by_rank["base_flops"] / possible,
            "as if factored": 100 * (by_rank["base_flops"] + by_rank["factored_flops"]) / possible,
        }
    )


def _tokens(table: pd.DataFrame) -> str:
    found = medians(table, "rank", "tokens")
    shown = found.rename(columns=NAMES).assign(ratio=found["loop"] / found["packed"])
    lines = [
        f"- rank {rank}: ours grows as tokens^{_exponent(rows['packed'], 'tokens'):.2f}"
        for rank, rows in found.groupby("rank")
    ]
    return "\n".join(lines) + "\n\n" + markdown(shown, "rank", "tokens")


def _walls(table: pd.DataFrame) -> str:
    by_way = table.groupby(["variant", "way"])["seconds"].median().unstack("way")
    ours = "packed" if "packed" in by_way else "alone"
    return "\n".join(
        f"- {variant}: {NAMES['trainer']} {row['trainer']:.1f} s, {NAMES[ours]} {row[ours]:.1f} s: "
        f"{row['trainer'] / row[ours]:.2f}x"
        for variant, row in by_way.iterrows()
    )


def _probes(table: pd.DataFrame) -> str:
    turn = table.groupby("variant").cumcount()
    seconds = table.assign(turn=turn).pivot(index="turn", columns="variant", values="seconds")
    over = 100 * (seconds.div(seconds["off"], axis=0).drop(columns="off") - 1)
    return "\n".join(
        f"- {variant}: {percent.median():+.1f} % (from {percent.min():+.1f} to {percent.max():+.1f})"
        for variant, percent in over.items()
    )


def _bf16(table: pd.DataFrame) -> str:
    found = medians(table, "rank", "precision").unstack("precision").dropna(axis=1, how="all")
    shown = pd.DataFrame(
        {
            "ours, float32": found["packed", "float32"],
            "ours, bf16": found["packed", "bf16"],
            "PEFT, tuned loop, bf16": found["loop", "bf16"],
        }
    )
    shown["bf16 is faster by"] = shown["ours, float32"] / shown["ours, bf16"]
    return markdown(shown, "rank")


def _layers(table: pd.DataFrame) -> str:
    by_depth = table.groupby("variant")["seconds"].median()
    by_depth.index = pd.Index([int(str(name).split()[0]) for name in by_depth.index], name="blocks")
    by_depth = by_depth.sort_index()
    return f"- grows as blocks^{_exponent(by_depth, 'blocks'):.2f}\n\n" + markdown(
        by_depth.to_frame("ours"), "blocks"
    )


def _exponent(series: "pd.Series[float]", level: str) -> float:
    """The log-log slope over an index level."""
    x = series.index.get_level_values(level).to_numpy(float)
    return float(np.polyfit(np.log(x), np.log(series.to_numpy(float)), 1)[0])


def markdown(table: pd.DataFrame, *index: str) -> str:
    """A table as Markdown, numbers to three digits."""
    plain = table.reset_index()
    head = [*index, *[c for c in plain.columns if c not in index]]
    rows = [
        [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row]
        for row in plain[head].itertuples(index=False, name=None)
    ]
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]
    )


def figure(sweep: pd.DataFrame, large: pd.DataFrame | None) -> Figure:
    """Seconds of a step against the rank, a panel a step size, a line a way."""
    parts = [("1024", sweep)] + ([("4096", large)] if large is not None else [])
    with style.paper():
        page = style.figure(1, 2, column=style.FULL, ratio=0.75)
        panels = page.subplots(1, 2, squeeze=False)[0]
        for panel, (tokens, table) in zip(panels, parts, strict=False):
            found = medians(table, "rank")
            for way in [w for w in LOOKS if w in found and w != "alone"]:
                colour, marker = LOOKS[way]
                panel.plot(
                    found.index,
                    found[way],
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    label=NAMES[way],
                )
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            ranks = list(found.index)
            panel.set_xticks(ranks, [str(rank) for rank in ranks])
            panel.xaxis.set_minor_locator(NullLocator())
            low, high = panel.get_ylim()
            ticks = [t for t in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200) if low <= t <= high]
            panel.set_yticks(ticks, [str(t) for t in ticks])
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel("rank")
            panel.set_ylabel("seconds a step")
            panel.set_title(f"{tokens} tokens a step")
        panels[0].legend(loc="upper left")
        for panel in panels[len(parts) :]:
            panel.set_axis_off()
    return page
