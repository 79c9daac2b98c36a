"""Local slopes of lazy layers of two widths: on theory's curve, and drawn as measured."""

import itertools
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
from tests.figures.checklist import problems
from tests.figures.conftest import artists

ALIGNMENTS = ("r_align", "r_diag", "r_eff", "r_joint")
RANKS, SEEDS, LAYERS, TOKENS, OUT = (2, 8, 32, 128), range(4), 6, 24, 12


def study_of(widths: tuple[int, ...]) -> SimpleNamespace:
    """After one SGD step at gamma = r^(-1/2): random layers with an A of their own."""
    fixed = {"optimizer": "sgd", "scaling": "rslora", "exponent": np.nan, "lr": 0.1, "alpha": 1.0}
    fixed |= {"init": "kaiming", "status": "complete", "model": "tiny", "steps": 2}
    cells, probes = [], []
    for width, rank, seed in itertools.product(widths, RANKS, SEEDS):
        cell = {"cell_id": f"{width}-{rank}-{seed}", "width": width, "model_sha256": str(width)}
        cells.append(fixed | cell | {"rank": float(rank), "seed": seed, "data_seed": seed})
        for number in range(LAYERS):
            fixed_rng = np.random.default_rng([width, number])
            x = fixed_rng.standard_normal((TOKENS, width)) * np.geomspace(3, 0.3, width)
            g = fixed_rng.standard_normal((TOKENS, OUT))
            G = g.T @ x
            known = theory.measure_layer(G, x, g)
            rng = np.random.default_rng([width, number, rank, seed])
            A = rng.uniform(-1, 1, (rank, width)) / math.sqrt(width)
            delta = G @ A.T @ A / rank
            place = {"cell_id": cell["cell_id"], "step": 1, "layer": f"{number}.q", "kind": "q"}
            place |= {"block": number, "batch": "train", "d_in": width, "d_out": OUT}
            facts = {name: getattr(known, name) for name in ALIGNMENTS}
            probes += [
                {**place, "site": "delta_w", "norm": np.linalg.norm(delta)},
                {**place, "site": "adapter_in_grad", "rms": np.linalg.norm(g @ delta)},
                {**place, "site": "adapter_out", "rms": np.linalg.norm(x @ delta.T)} | facts,
            ]
    empty = pd.DataFrame({"cell_id": [], "step": [], "clip_factor": [], "loss": []})
    frames = {"cells": pd.DataFrame(cells), "probes": pd.DataFrame(probes)}
    return SimpleNamespace(**frames, metrics=empty, exponents=pd.DataFrame())


def test_the_figure_shows_the_table() -> None:
    study = study_of((16, 64))
    figure = local_slopes_by_width(study)
    found = local_slopes(study.cells, study.metrics, study.probes, (WEIGHT_CHANGE,), 1)
    for width in (16, 64):
        mine = found[found["width"] == width]
        points = artists(figure, f"slopes {width}")[0]
        np.testing.assert_allclose(points.get_xdata(), mine["position"])
        np.testing.assert_allclose(points.get_ydata(), mine["exponent"])
        theory_lines = artists(figure, f"theory {width}")[0].get_segments()
        np.testing.assert_allclose([line[0, 1] for line in theory_lines], mine["predicted"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["width 16", "width 64"]
    assert problems(figure) == []
    study.cells = study.cells[study.cells["width"] == 16]
    with pytest.raises(Absent, match=r"need a study over model\.width"):
        local_slopes_by_width(study)
