"""Every figure of the package is put to the checklist."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks.inference_costs import infer_cost
from benchmarks.summary import speed
from docs.blocks import study_tables, table
from study.figures import FIGURES, Absent, draw_all
from tests.figures import test_alpha, test_local_slopes, test_rate_exponents
from tests.figures.checklist import problems
from tests.figures.test_conditions import lazy
from tests.figures.test_learning_rates import sweep

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
