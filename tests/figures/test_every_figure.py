"""All figures over all kinds of study: no crash, no overlap, nothing cut off."""

import logging
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from research.blocks import study_tables
from study.figures import FIGURES, Absent, draw_all
from tests.analysis import test_capacity, test_rate_horizons
from tests.figures import test_bf16, test_losses, test_plane
from tests.figures.checklist import problems
from tests.figures.conftest import said, tiny
from tests.figures.test_against_rank import lazy
from tests.test_extending import blocks

PLAIN = (
    *("loss_curves", "grad_norm_curves", "grad_norm_vs_rank", "activation_moments_vs_rank"),
    *("descent_vs_rank", "exponents_over_training", "loss_against_rank"),
)
"""The figures that every synthetic study has data for. The others have tests of their own."""
BOTH = [("lora", np.nan), ("rslora", np.nan)]
WIDE = tuple(4 * 2**k for k in range(10))
LONG = {"model": "meta-llama/Llama-3.1-8B-Instruct", "targets": "q_proj,v_proj", "lr": 0.1}
STUDIES = {
    "one rank": {"ranks": (64,)},
    "uneven and infinite ranks": {"ranks": (4, 5, 6, 7, 8, 16, 1000, 1024, np.inf)},
    "ten ranks, other rules": {
        "ranks": WIDE,
        "seeds": (0,),
        "rules": [*BOTH, ("power", 0.75), ("crossover", 40.0), ("crossover", 8.0)],
    },
    "diverged": {
        "steps": 20,
        "status": lambda c: "diverged" if c["rank"] > 4 and c["seed"] else "complete",
    },
    "still running": {"steps": 20, "status": lambda c: "running"},
    "long labels": {
        "settings": [{"optimizer": "adamw"}, {"optimizer": "sgd", "lr": 0.12345}, LONG]
    },
    "not analysed": {"fitted": False},
}
FEWER = {"one rank": PLAIN[:2], "not analysed": PLAIN[:5], "still running": PLAIN[:6]}


@pytest.mark.parametrize("kind", STUDIES)
def test_nothing_collides_in_unusual_studies(kind):
    drawn = []
    with warnings.catch_warnings():
        # A missing glyph, a layout that collapsed, the logarithm of zero.
        warnings.simplefilter("error")
        for name, figure in draw_all(tiny(**STUDIES[kind])):
            assert problems(figure) == [], name
            drawn.append(name)
            assert str(figure.get_label()) in said(figure), f"{name}: the settings of its cells"
    assert set(FEWER.get(kind, PLAIN)) <= set(drawn)
    assert drawn == [name for name in FIGURES if name in drawn]


def swept():
    """Learning rates at more ranks than lines are drawn, with truncations."""
    tables = test_losses.sweep(ranks=WIDE)
    kept = pd.DataFrame({"kept": [0.0, 1.0, 4.0]}).assign(share=0.5)
    cut = tables.cells[["cell_id", "rank"]].merge(kept, how="cross")
    cut = cut.assign(loss=3.0 - 0.1 * np.log2(1 + cut["kept"]))
    whole = cut.assign(kept=cut["rank"]).drop_duplicates("cell_id")
    tables.truncations = pd.concat([cut, whole]).drop(columns="rank")
    return tables


def distant():
    """Distances of cells and of runs that are no cells."""
    tables = lazy()
    place = {"step": 1, "layer": "model", "kind": "model", "measure": "loss"}
    rows = tables.cells[["cell_id", "rank", "scaling", "seed"]].assign(**place)
    rows = rows.assign(distance=rows["rank"] ** -0.5)
    about = {"optimizer": "adamw", "exponent": np.nan, "lr": 0.1, "alpha": 16.0, "init": "kaiming"}
    free = rows.assign(cell_id=rows["cell_id"] + " free", rank=1024 * rows["rank"], **about)
    tables.distances = pd.concat([rows, free])
    return tables


RICH = (
    lambda: tiny(settings=[{"quant_bits": bits} for bits in (np.nan, 4.0)], seeds=(0,)),
    swept,
    distant,
)
OF_ONE_FIGURE = {
    "bits_stored": test_capacity.tables,
    "rate_exponent_vs_rho": test_rate_horizons.study,
    "loss_against_alpha": test_losses.products,
    "learning_rate_basins_by_setting": test_losses.two_settings,
    "loss_in_bf16": test_bf16.in_bf16,
    "alpha_plane": test_plane.study,
    "best_pairs_by_rank": test_plane.study,
    "loss_against_rho": test_plane.study,
}
"""Studies that together have data for every figure, and those that have data for one."""


def test_every_figure_is_drawn_and_passes():
    drawn = {name: problems(FIGURES[name](make())) for name, make in OF_ONE_FIGURE.items()}
    for make in RICH:
        tables = make()
        for name in FIGURES.keys() - drawn.keys():
            try:
                drawn[name] = problems(FIGURES[name](tables))
            except Absent:
                continue
    assert drawn == {name: [] for name in FIGURES}, "a figure without data here is not checked"


def test_a_figure_of_the_recipe_passes_in_every_study(monkeypatch):
    """As if it were in the package (docs/extending.md)."""
    monkeypatch.setitem(FIGURES, "seconds_vs_rank", None)
    exec(blocks("A figure")["python"], {})
    made = {kind: tiny(**about) for kind, about in STUDIES.items()}
    made |= {make: make() for make in (*RICH, *OF_ONE_FIGURE.values())}
    drawn = set()
    for kind, tables in made.items():
        for _, figure in draw_all(tables, names=["seconds_vs_rank"]):
            assert problems(figure) == [], kind
            drawn.add(kind)
    assert made.keys() - drawn == {"still running"}


def test_committed_figures_pass():
    for name, figure in draw_all(study_tables()):
        assert problems(figure) == [], name


def test_a_figure_without_data_is_skipped_with_a_warning(caplog):
    tables = tiny()
    tables.probes = tables.probes.iloc[:0]
    with caplog.at_level(logging.WARNING):
        drawn = {name for name, _ in draw_all(tables)}
    assert not drawn & {"grad_norm_vs_rank", "activation_moments_vs_rank", "descent_vs_rank"}
    assert {"loss_curves", "grad_norm_curves"} <= drawn
    missing = "no model-wide adapter_update descent in the tables"
    assert f"no figure descent_vs_rank: {missing}" in caplog.messages
    nothing = SimpleNamespace(**{name: frame.iloc[:0] for name, frame in vars(tables).items()})
    assert list(draw_all(nothing)) == []
