"""Local slopes of lazy layers of two widths: on theory's curve, and drawn as measured."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study import theory
from study.analysis.predictions import local_slopes
from study.figures.local_slopes import local_slopes_by_width
from study.figures.selection import Absent
from study.vocabulary.quantities import WEIGHT_CHANGE

RANKS, SEEDS, LAYERS, TOKENS, OUT = (2, 8, 32, 128), range(4), 6, 24, 12


def probes_of(cell: dict, width: int) -> list[dict]:
    """After one SGD step at gamma = r^(-1/2): random layers with an A of their own."""
    rows = []
    for number in range(LAYERS):
        fixed = np.random.default_rng([width, number])
        x = fixed.standard_normal((TOKENS, width)) * np.geomspace(3, 0.3, width)
        g = fixed.standard_normal((TOKENS, OUT))
        G = g.T @ x
        known = theory.measure_layer(G, x, g)
        rng = np.random.default_rng([width, number, int(cell["rank"]), cell["seed"]])
        A = rng.uniform(-1, 1, (int(cell["rank"]), width)) / math.sqrt(width)
        delta = G @ A.T @ A / cell["rank"]
        place = {
            "cell_id": cell["cell_id"],
            "step": 1,
            "layer": f"{number}.q",
            "block": number,
            "kind": "q",
            "batch": "train",
            "d_in": width,
            "d_out": OUT,
        }
        alignments = ("r_align", "r_diag", "r_eff", "r_joint")
        rows += [
            {**place, "site": "delta_w", "norm": np.linalg.norm(delta)},
            {**place, "site": "adapter_in_grad", "rms": np.linalg.norm(g @ delta)},
            {**place, "site": "adapter_out", "rms": np.linalg.norm(x @ delta.T)}
            | {name: getattr(known, name) for name in alignments},
        ]
    return rows


def study_of(widths: tuple[int, ...]) -> SimpleNamespace:
    fixed = {"optimizer": "sgd", "scaling": "rslora", "exponent": np.nan, "lr": 0.1, "alpha": 1.0}
    fixed |= {"init": "kaiming", "status": "complete", "model": "tiny", "steps": 2}
    cells, probes = [], []
    for width in widths:
        for rank in RANKS:
            for seed in SEEDS:
                name = f"{width}-{rank}-{seed}"
                cells.append(
                    fixed
                    | {"cell_id": name, "width": width, "rank": float(rank), "seed": seed}
                    | {"data_seed": seed, "model_sha256": f"sha of {width}"}
                )
                probes += probes_of(cells[-1], width)
    empty = pd.DataFrame({"cell_id": [], "step": [], "clip_factor": [], "loss": []})
    return SimpleNamespace(
        cells=pd.DataFrame(cells),
        metrics=empty,
        exponents=pd.DataFrame(),
        probes=pd.DataFrame(probes),
    )


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    return study_of((16, 64))


def test_the_figure_shows_the_table(study, read) -> None:
    figure = local_slopes_by_width(study)
    found = local_slopes(study.cells, study.metrics, study.probes, (WEIGHT_CHANGE,), 1)
    for width in (16, 64):
        mine = found[found["width"] == width]
        points = read.artists(figure, f"slopes {width}")[0]
        np.testing.assert_allclose(points.get_xdata(), mine["position"])
        np.testing.assert_allclose(points.get_ydata(), mine["exponent"])
        theory_lines = read.artists(figure, f"theory {width}")[0].get_segments()
        np.testing.assert_allclose([line[0, 1] for line in theory_lines], mine["predicted"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["width 16", "width 64"]
    assert read.problems(figure) == []


def test_a_study_of_one_width_is_not_enough(study) -> None:
    one = SimpleNamespace(**vars(study))
    one.cells = study.cells[study.cells["width"] == 16]
    with pytest.raises(Absent, match=r"need a study over model\.width"):
        local_slopes_by_width(one)
