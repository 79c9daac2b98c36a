"""What theory says about the best learning rate, from the alignments that the probes recorded."""

import math

import numpy as np
import pandas as pd
import pytest

from study.analysis.rate_theory import MOVES, log_moves, predicted_interval
from study.theory import Layer, curve

RANKS = (4.0, 16.0, 64.0, 256.0)
NONE = pd.DataFrame({name: [] for name in ("cell_id", "step", "layer", "site", "batch")})


def runs(optimizer: str, p: float) -> pd.DataFrame:
    cells = pd.DataFrame({"cell_id": [f"c{n}" for n in range(len(RANKS))], "rank": RANKS})
    return cells.assign(optimizer=optimizer, exponent_p=p, init="kaiming")


def recorded(**layers: float) -> pd.DataFrame:
    """``r_sign`` and ``r_align`` of layers, the same in every cell."""
    rows = [
        {"cell_id": f"c{n}", "layer": layer, "r_sign": value, "r_align": value, "step": step}
        for n in range(len(RANKS))
        for layer, value in layers.items()
        for step in (1, 3)
    ]
    return pd.DataFrame(rows).assign(site="adapter_out", batch="train", d_in=64.0)


def interval(optimizer: str, p: float, probes: pd.DataFrame) -> tuple[float, float]:
    return predicted_interval(log_moves(runs(optimizer, p), probes), optimizer)


@pytest.mark.parametrize(("optimizer", "name"), [("adamw", "r_sign"), ("sgd", "r_align")])
def test_it_keeps_the_change_of_the_output_constant(optimizer: str, name: str) -> None:
    """A rate of 1/M(r) times the finite-rank curve of one layer is flat."""
    moves = log_moves(runs(optimizer, 0.5), recorded(a=9.0))
    law = {"step": 1, "optimizer": optimizer, "p": 0.5, "layer": Layer(d_in=64, **{name: 9.0})}
    of_curve = curve("adapter_out", "rms", RANKS, **law)
    assert np.ptp(np.log(of_curve) - moves[MOVES[0]].to_numpy()) == pytest.approx(0.0, abs=1e-9)
    assert moves[MOVES[0]].to_numpy() == pytest.approx(moves[MOVES[1]].to_numpy())


def test_the_bend_counts() -> None:
    """r sqrt(1 + 8/r) over ranks 4 to 256 has the slope 0.874, not 1."""
    x, y = np.log(RANKS), [math.log(r * math.sqrt(1 + 8 / r)) for r in RANKS]
    bend = np.polyfit(x, y, 1)[0]
    assert interval("adamw", 0.0, recorded(a=9.0)) == pytest.approx((-bend, -bend / 2))
    assert interval("adamw", 0.5, recorded(a=9.0)) == pytest.approx((0.5 - bend, (0.5 - bend) / 2))
    assert interval("adamw", 1.0, recorded(a=9.0)) == pytest.approx(((1 - bend) / 2, 1 - bend))
    low, high = interval("sgd", 0.5, recorded(a=9.0))
    assert low == high, "a linear rule has one value"
    # Layers are averaged in the log.
    two = interval("adamw", 0.0, recorded(a=4.0, b=25.0))
    ends = [interval("adamw", 0.0, recorded(a=value)) for value in (4.0, 25.0)]
    assert two == pytest.approx(tuple(np.mean(ends, axis=0)))


def test_without_recorded_alignments_it_is_the_interval_over_plausible_ones() -> None:
    sizes = recorded(a=9.0).drop(columns=["r_sign", "r_align"])
    low, high = interval("adamw", 0.0, sizes)
    aligned, unrelated = (
        interval("adamw", 0.0, recorded(a=math.pi / 2 * scale)) for scale in (1, 64)
    )
    assert (low, high) == pytest.approx((aligned[0], unrelated[1]))
    unknown = interval("adamw", 0.0, NONE)
    assert unknown == pytest.approx((low, -0.25), abs=1e-3), "sqrt(r) without a size of the layers"
