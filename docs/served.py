"""The picture of docs/serving.md: log-probabilities in PEFT and in llama.cpp's server.

``results/reference/served.csv`` is measured by ``tests/integrations/llama_cpp.py``.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from docs.blocks import RESULTS
from study.figures.style import figure, finish, paper

SHOWN = {"server": ("as it is", "#c44e52", "x"), "folded": ("after study fold", "#4c72b0", "o")}


def served() -> pd.DataFrame:
    """By rank, prompt and token: log-probabilities of the base, of PEFT, and of the server."""
    return pd.read_csv(RESULTS / "served.csv")


@paper()
def picture() -> Figure:
    """The server's log-probabilities against PEFT's, a panel per rank of rsLoRA."""
    ranks = served()["rank"].unique()
    page = figure(1, len(ranks), ratio=1.0, above=0.35)
    drawn = served()[["peft", *SHOWN]]
    ends = drawn.min().min() - 0.1, drawn.max().max() + 0.1
    panels = page.subplots(1, len(ranks), sharex=True, sharey=True)
    for ax, rank in zip(panels, ranks, strict=True):
        rows = served().query(f"rank == {rank}")
        ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
        for column, (label, colour, marker) in SHOWN.items():
            ax.scatter(rows["peft"], rows[column], 9, colour, marker, linewidths=0.8, label=label)
        off = np.abs(rows["server"] - rows["peft"]).max()
        ax.set_title(f"rank {rank}: off by up to {off:.2g} nats")
        ax.set(xlabel="log-probability in PEFT", xlim=ends, ylim=ends)
    panels[0].set_ylabel("log-probability in llama.cpp")
    panels[0].legend(loc="upper left", frameon=False)
    return finish(page)
