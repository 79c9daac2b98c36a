"""Losses against alpha x learning rate show the tables."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.figures import Absent
from study.figures.alpha_against_rate import loss_against_alpha

RATES, ALPHAS = (5e-4, 2e-3, 8e-3), (16.0, 64.0, 256.0, 1024.0)


def swept(*, optimizer: str = "adamw", alphas=ALPHAS, rates=RATES, lost=lambda cell: False):
    """The best product is 0.128; the loss there grows with the learning rate."""
    cells, metrics, probes = [], [], []
    for rank, lr, alpha, seed in itertools.product((4, 256), rates, alphas, (0, 1)):
        cell = {"cell_id": f"c{len(cells)}", "optimizer": optimizer, "scaling": "lora"}
        cell |= {"exponent": np.nan, "rank": float(rank), "alpha": alpha, "lr": lr}
        cell |= {"gamma": alpha / rank, "seed": seed, "data_seed": seed}
        cell |= {"status": "diverged" if lost(cell) else "complete", "diverged_step": np.nan}
        if lost(cell):
            cell["diverged_step"] = 5.0
        cells.append(cell)
        loss = 3.0 + 30 * lr + 0.05 * np.log(alpha * lr / 0.128) ** 2 + 0.02 * seed
        metrics += [
            {"cell_id": cell["cell_id"], "step": 0, "eval_loss": 3.9},
            {"cell_id": cell["cell_id"], "step": 10, "eval_loss": np.nan if lost(cell) else loss},
        ]
        place = {"cell_id": cell["cell_id"], "step": 10, "batch": "train", "site": "A"}
        probes += [
            {**place, "layer": f"layers.{n}", "block": n, "kind": "q_proj", "rho": 300 * lr * scale}
            for n, scale in enumerate((0.5, 1.0, 4.0))
        ]
    return SimpleNamespace(
        cells=pd.DataFrame(cells),
        metrics=pd.DataFrame(metrics),
        probes=pd.DataFrame(probes),
        exponents=pd.DataFrame(),
    )


def test_a_line_per_rate_shows_means_over_seeds_at_its_products(read) -> None:
    figure = loss_against_alpha(swept())
    (line,) = read.artists(figure, "line lr=0.002 r=4")
    np.testing.assert_allclose(line.get_xdata(), np.array(ALPHAS) * 2e-3)
    expected = 3.06 + 0.05 * np.log(np.array(ALPHAS) * 2e-3 / 0.128) ** 2 + 0.01
    np.testing.assert_allclose(line.get_ydata(), expected)
    for lr in RATES:
        for rank in (4, 256):
            (best,) = read.artists(figure, f"best lr={lr:g} r={rank}")
            assert best.get_xdata() == pytest.approx([0.128])
            assert best.get_ydata() == pytest.approx([3.01 + 30 * lr])
    said = " ".join(read.texts(figure)).replace("\n", " ")
    assert "mean over 2 seeds" in said
    assert r"Median ρ after the last step, on the training batch: 0.15 at" in said
    assert "2.4 at" in said
    assert read.problems(figure) == []


@pytest.mark.parametrize(
    "few", [{"alphas": (16.0,)}, {"rates": (1e-3,)}, {"optimizer": "sgd"}], ids=str
)
def test_it_needs_two_alphas_of_two_rates_of_a_sign_like_optimizer(few) -> None:
    with pytest.raises(Absent):
        loss_against_alpha(swept(**few))
