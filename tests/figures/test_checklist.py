"""The checklist rejects bad figures, and every figure of the package is put to it.

The other tests of this folder put unusual studies to it as well.
"""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.inference_costs import infer_cost
from benchmarks.summary import speed
from docs.blocks import study_tables, table
from study.figures import FIGURES, Absent, draw_all
from tests.figures import test_alpha, test_local_slopes, test_rate_exponents
from tests.figures.checklist import problems
from tests.figures.test_conditions import lazy
from tests.figures.test_learning_rates import sweep

# bad figures


def page(draw: Callable[[Axes], object] = lambda ax: None, **options: object) -> Figure:
    """A figure with one line, and what ``draw`` adds to it."""
    figure = Figure(figsize=(4, 3), **{"layout": "constrained", **options})
    ax = figure.subplots()
    ax.plot([1, 10], [1, 10], label="a line")
    draw(ax)
    return figure


def pale(ax: Axes) -> None:
    ax.plot([1, 10], [2, 3], color="#ffcf99", gid="curve")


def transparent(ax: Axes) -> None:
    ax.vlines([2, 4], 2, 3, color="black", alpha=0.3, gid="bars")


def pale_markers(ax: Axes) -> None:
    ax.plot([1], [2], "o", color="yellow", gid="points")


def two_ticks(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.set_yticks([1, 10])


def seven_labels(ax: Axes) -> None:
    for number in range(7):
        ax.text(2, 2 + number, str(number))


def title_on_text(ax: Axes) -> None:
    ax.set_title("title")
    ax.figure.text(0.5, 0.94, "over it")


def two_legends(ax: Axes) -> None:
    other = ax.figure.add_subplot(2, 2, 4)
    other.plot([0, 1], [0, 1], label="a line")
    for one in (ax, other):
        one.legend(bbox_to_anchor=(0, 1.02), loc="lower left")


BAD = {
    "'a long label' on 'another long label'": lambda ax: ax.set_xticks(
        [5, 5.01], ["a long label", "another long label"]
    ),
    "a legend on a panel": lambda ax: ax.legend(loc="center"),
    "'beyond' outside of its panel": lambda ax: ax.text(10, 10, "beyond"),
    "'title' on 'over it'": title_on_text,
    "curve has a contrast of 1.4:1": pale,
    "bars has a contrast of 2.": transparent,
    "points has a contrast of 1.1:1": pale_markers,
    "2 labelled ticks on a logarithmic y axis": two_ticks,
    "7 labels in a panel": seven_labels,
    "2 legends say a line": two_legends,
    "shows its markup": lambda ax: ax.set_xlabel("half a formula $\\alpha"),
    "has 4 points": lambda ax: ax.set_xlabel("tiny", fontsize=4),
}


# every figure


RANKS = tuple(4 * 2**k for k in range(10))


@pytest.fixture(scope="module")
def studies(tiny) -> list[SimpleNamespace]:
    """Studies that together have data for every figure, with more ranks than lines are drawn."""
    swept = sweep(ranks=RANKS)
    kept = pd.DataFrame({"kept": [0.0, 1.0, 4.0]}).assign(share=0.5)
    cut = swept.cells[["cell_id", "rank"]].merge(kept, how="cross")
    cut = cut.assign(loss=3.0 - 0.1 * np.log2(1 + cut["kept"]))
    whole = cut.assign(kept=cut["rank"]).drop_duplicates("cell_id")
    swept.truncations = pd.concat([cut, whole]).drop(columns="rank")
    distant = lazy(optimizers=("adamw",))
    rows = distant.cells[["cell_id", "rank", "scaling", "seed"]].assign(
        step=1, layer="model", kind="model", measure="loss"
    )
    rows = rows.assign(distance=rows["rank"] ** -0.5)
    free = rows.assign(cell_id=rows["cell_id"] + " free", rank=1024 * rows["rank"])
    distant.distances = pd.concat([rows, free.assign(**FREE)])
    return [
        tiny(settings=[{"quant_bits": bits} for bits in (np.nan, 4.0)], seeds=(0,)),
        swept,
        distant,
    ]


FREE = {"optimizer": "sgd", "exponent": np.nan, "lr": 0.1, "alpha": 16.0, "init": "kaiming"}
"""What the table of distances says of a run that is no cell."""


OF_ONE_FIGURE = {
    "loss_against_alpha": test_alpha.swept,
    "local_slopes_by_width": lambda: test_local_slopes.study_of((64, 256)),
    "rate_exponent_vs_rho": test_rate_exponents.study,
}
"""Studies that have data for one figure only."""


def test_every_figure_is_drawn_and_passes(studies: list[SimpleNamespace]) -> None:
    drawn = {name: problems(FIGURES[name](make())) for name, make in OF_ONE_FIGURE.items()}
    for tables in studies:
        for name, draw in FIGURES.items():
            if name not in drawn:
                try:
                    drawn[name] = problems(draw(tables))
                except Absent:
                    continue
    assert drawn == {name: [] for name in FIGURES}, "a figure without data here is not checked"


def test_committed_figures_pass() -> None:
    for name, figure in draw_all(study_tables()):
        assert problems(figure) == [], name


def test_figures_of_benchmarks_pass() -> None:
    assert problems(speed(table("bench/sweep"), table("bench/large-steps"))) == []
    assert problems(speed(table("bench/sweep"), None)) == []
    assert problems(infer_cost(table("infer_cost/infer_cost"))) == []
