"""Distances to infinite rank: first steps of random adapters against the known distance."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study import theory
from study.figures.distances import distance_to_infinite_rank, rank_free_curves
from study.figures.selection import Absent

D_IN, D_OUT = 48, 32
RANKS, SEEDS = (4, 16, 64, 256, 1024), range(4)
FREE = tuple(4**k for k in range(2, 11))
WHO = "rslora p=0.5"
LAYERS = ("layers.0.q_proj", "layers.1.q_proj")


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


def cells_of(ranks, seeds) -> pd.DataFrame:
    fixed = {
        "optimizer": "sgd",
        "scaling": "rslora",
        "exponent": np.nan,
        "lr": 0.1,
        "alpha": 16.0,
        "init": "kaiming",
    }
    fixed |= {"status": "complete"}
    rows = [
        {
            **fixed,
            "cell_id": f"c{rank}-{seed}",
            "rank": float(rank),
            "seed": seed,
            "data_seed": seed,
            "status": "complete",
        }
        for rank in ranks
        for seed in seeds
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    cells = cells_of((*RANKS, np.inf), SEEDS)
    distances, probes = [], []
    for _, cell in cells.iterrows():
        for number, layer in enumerate(LAYERS):
            G, x, known = problem(number)
            place = {"cell_id": cell["cell_id"], "layer": layer, "kind": "q_proj"}
            facts = {
                "d_in": D_IN,
                "d_out": D_OUT,
                "r_align": known.r_align,
                "r_diag": known.r_diag,
                "rms": 1.0,
            }
            probes.append(
                {
                    **place,
                    "step": 1,
                    "block": number,
                    "site": "adapter_out",
                    "batch": "train",
                    **facts,
                }
            )
            if np.isfinite(cell["rank"]):
                for measure, value in first_step(G, x, int(cell["rank"]), cell["seed"]).items():
                    who = {"rank": cell["rank"], "scaling": "rslora", "seed": cell["seed"]}
                    distances.append(
                        {**place, **who, "step": 1, "measure": measure, "distance": value}
                    )
                    distances.append(
                        {**place, **who, "step": 5, "measure": measure, "distance": 1.1 * value}
                    )
                    distances.append(
                        {**place, **who, "step": 0, "measure": measure, "distance": 0.0}
                    )
        if np.isfinite(cell["rank"]):
            model = {
                "cell_id": cell["cell_id"],
                "layer": "model",
                "kind": "model",
                "measure": "loss",
            }
            who = {"rank": cell["rank"], "scaling": "rslora", "seed": cell["seed"]}
            distances += [
                {**model, **who, "step": s, "distance": 0.1 * cell["rank"] ** -0.5} for s in (1, 5)
            ]
    empty = pd.DataFrame()
    return SimpleNamespace(
        cells=cells,
        metrics=empty,
        exponents=empty,
        probes=pd.DataFrame(probes),
        distances=pd.DataFrame(distances),
    )


def titled(figure, heading: str, row: int = 0):
    return [ax for ax in figure.axes if ax.get_legend().get_title().get_text() == heading][row]


def on(ax, found):
    (one,) = (a for a in found if a.axes is ax)
    return one


def test_points_are_the_mean_over_layers_of_the_log_distance(study, read) -> None:
    figure = distance_to_infinite_rank(study)
    for heading, measure in (
        ("Frobenius", "frobenius"),
        ("input-weighted", "input_weighted"),
        ("loss", "loss"),
    ):
        for row, step in enumerate((1, 5)):
            rows = study.distances[
                (study.distances["measure"] == measure) & (study.distances["step"] == step)
            ]
            means = np.exp(
                rows.assign(log=np.log(rows["distance"])).groupby(["rank", "seed"])["log"].mean()
            )
            points = on(titled(figure, heading, row), read.artists(figure, f"points {WHO}"))
            np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(means))
            assert np.inf not in points.get_xdata()


def test_missing_distances_are_reported(study) -> None:
    without = SimpleNamespace(
        **{name: frame for name, frame in vars(study).items() if name != "distances"}
    )
    with pytest.raises(Absent, match="run study distances"):
        distance_to_infinite_rank(without)
    with pytest.raises(Absent, match="no rank-free runs"):
        rank_free_curves(study)


# rank-free


@pytest.fixture(scope="module")
def free(study) -> SimpleNamespace:
    rng = np.random.default_rng(1)
    rows = [
        {
            "rank": float(rank),
            "scaling": "rslora",
            "seed": seed,
            "step": 1,
            "layer": "layers.0.q_proj",
            "kind": "q_proj",
            "cell_id": f"free {rank} {seed}",
        }
        | {
            "measure": "frobenius",
            "distance": np.sqrt((D_IN - 0.2) / rank) * np.exp(0.02 * rng.standard_normal()),
        }
        | {"d_in": D_IN, "optimizer": "sgd", "init": "kaiming"}
        for rank in FREE
        for seed in range(3)
    ]
    explicit = study.distances[
        (study.distances["measure"] == "frobenius") & (study.distances["step"] == 1)
    ]
    return SimpleNamespace(
        **{**vars(study), "distances": pd.concat([explicit, pd.DataFrame(rows)])}
    )
