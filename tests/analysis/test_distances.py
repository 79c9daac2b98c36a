"""The distance between two snapshots, against its definition on the inputs themselves."""

import math

import numpy as np
import pytest

from study.analysis.distances import RunState, compare


def test_distances_and_alignments_follow_their_definitions():
    """Inputs x [50, 6], and a limit and a run of one layer of shape [4, 6]. The third output of the
    limit has no gradient, so it does not count in the mean of the squared cosines."""
    rng = np.random.default_rng(0)
    x, far, near = (rng.standard_normal(shape) for shape in ((50, 6), (4, 6), (4, 6)))
    far[2] = 0
    moments = {"a.q": x.T @ x / 50}
    limit, run = RunState(3, 2.0, {"a.q": far}, moments), RunState(3, 1.5, {"a.q": near}, {})
    rows = compare(limit, run)
    distance = dict(zip(rows["measure"], rows["distance"], strict=True))
    norm = np.linalg.norm
    assert distance["loss"] == pytest.approx(0.5)
    assert distance["frobenius"] == pytest.approx(norm(near - far) / norm(far))
    assert distance["input_weighted"] == pytest.approx(norm(x @ (near - far).T) / norm(x @ far.T))
    layer = rows[rows["measure"] == "frobenius"].iloc[0]
    aligned = norm(far) ** 2 * norm(x) ** 2 / norm(x @ far.T) ** 2
    assert layer["r_align"] == pytest.approx(aligned)
    assert (layer["d_in"], layer["d_out"], layer["kind"], layer["step"]) == (6, 4, "q", 3)
    live = far[[0, 1, 3]]
    dots = (x @ live.T) ** 2 / np.square(live).sum(1)
    assert layer["r_sign"] == pytest.approx(math.pi / 2 * 3 * np.square(x).sum() / dots.sum())

    still = compare(RunState(0, 2.0, {"a.q": np.zeros((4, 6))}, moments), run)
    of_layer = still[still["measure"] != "loss"]
    assert of_layer[["distance", "r_align"]].isna().all(axis=None), "it has not moved"
