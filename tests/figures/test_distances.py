"""Distances to infinite rank: first steps of random adapters against the known distance."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study import theory
from study.figures.distances import distance_to_infinite_rank
from tests.figures.conftest import artists, only, rows

D_IN, D_OUT = 48, 32
RANKS, SEEDS = (4, 16, 64, 256, 1024), range(4)
LAYERS = ("layers.0.q_proj", "layers.1.q_proj")
MEASURES = {"Frobenius": "frobenius", "input-weighted": "input_weighted", "loss": "loss"}
"""By the heading of a panel."""


def problem(layer: int) -> tuple[np.ndarray, np.ndarray, theory.Layer]:
    """A weight gradient, the inputs of its batch, and the layer's sizes and alignments."""
    rng = np.random.default_rng(layer)
    x = rng.standard_normal((64, D_IN)) * np.geomspace(3, 0.3, D_IN)
    g = rng.standard_normal((64, D_OUT)) * 0.1
    G = g.T @ x
    return G, x, theory.measure_layer(G, x, g)


def first_step(G: np.ndarray, x: np.ndarray, rank: int, seed: int) -> dict[str, float]:
    """Relative distances of G A^T A / (r v) from G, for one draw of A."""
    bound = D_IN**-0.5  # uniform, variance 1/(3 D_IN): PEFT's Kaiming
    A = np.random.default_rng([seed, rank]).uniform(-bound, bound, (rank, D_IN))
    off = G @ (A.T @ A * 3 * D_IN / rank) - G
    weighted = np.linalg.norm(x @ off.T) / np.linalg.norm(x @ G.T)
    return {"frobenius": np.linalg.norm(off) / np.linalg.norm(G), "input_weighted": weighted}


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    fixed = {"optimizer": "sgd", "exponent": np.nan, "lr": 0.1, "alpha": 16.0, "init": "kaiming"}
    fixed |= {"status": "complete"}
    cells, distances = [], []
    for rank, seed in itertools.product((*RANKS, np.inf), SEEDS):
        who = {"cell_id": f"c{rank}-{seed}", "rank": float(rank), "seed": seed, "scaling": "rslora"}
        cells.append(fixed | who | {"data_seed": seed})
        for number, layer in enumerate(LAYERS):
            G, x, known = problem(number)
            facts = {"d_in": D_IN, "d_out": D_OUT, "r_align": known.r_align, "r_diag": known.r_diag}
            if np.isfinite(rank):
                for measure, value in first_step(G, x, rank, seed).items():
                    row = who | facts | {"layer": layer, "kind": "q_proj", "measure": measure}
                    for step, factor in ((0, 0.0), (1, 1.0), (5, 1.1)):
                        distances.append(row | {"step": step, "distance": factor * value})
        if np.isfinite(rank):
            model = who | {"layer": "model", "kind": "model", "measure": "loss"}
            distances += [model | {"step": s, "distance": 0.1 * rank**-0.5} for s in (1, 5)]
    none = pd.DataFrame()
    return SimpleNamespace(
        cells=pd.DataFrame(cells),
        metrics=none,
        exponents=none,
        probes=none,
        distances=pd.DataFrame(distances),
    )


def test_points_are_the_mean_over_layers_of_the_log_distance(study) -> None:
    figure = distance_to_infinite_rank(study)
    for (heading, measure), (place, step) in itertools.product(MEASURES.items(), enumerate((1, 5))):
        titled = [ax for ax in figure.axes if ax.get_legend().get_title().get_text() == heading]
        points = only(figure, "points rslora", titled[place])
        here = rows(study.distances, measure=measure, step=step)
        here = here.assign(log=np.log(here["distance"]))
        means = np.exp(here.groupby(["rank", "seed"])["log"].mean())
        np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(means))
    assert len(artists(figure, "known")) == 2  # theory of the first step, of two measures
