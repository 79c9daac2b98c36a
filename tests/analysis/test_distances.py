"""The distance between two snapshots, against its definition on the inputs themselves."""

import math

import numpy as np
import pytest

from study.analysis.distances import RunState, compare


def snapshots():
    """Inputs x [50, 6], and a limit and a run of one layer of shape [4, 6]."""
    rng = np.random.default_rng(0)
    x, limit, run = (rng.standard_normal(shape) for shape in ((50, 6), (4, 6), (4, 6)))
    moments = {"a.q": x.T @ x / 50}
    return x, RunState(3, 2.0, {"a.q": limit}, moments), RunState(3, 1.5, {"a.q": run}, {})


def test_distances_and_alignments_follow_their_definitions():
    x, limit, run = snapshots()
    rows = compare(limit, run)
    distance = dict(zip(rows["measure"], rows["distance"], strict=True))
    far, near = limit.deltas["a.q"], run.deltas["a.q"]
    norm = np.linalg.norm
    assert distance["loss"] == pytest.approx(0.5)
    assert distance["frobenius"] == pytest.approx(norm(near - far) / norm(far))
    assert distance["input_weighted"] == pytest.approx(norm(x @ (near - far).T) / norm(x @ far.T))
    layer = rows[rows["measure"] == "frobenius"].iloc[0]
    aligned = norm(far) ** 2 * norm(x) ** 2 / norm(x @ far.T) ** 2
    assert layer["r_align"] == pytest.approx(aligned)
    assert (layer["d_in"], layer["d_out"], layer["kind"], layer["step"]) == (6, 4, "q", 3)


def test_the_sign_alignment_is_the_mean_squared_cosine_of_rows_and_inputs():
    x, limit, run = snapshots()
    delta = limit.deltas["a.q"].copy()
    delta[2] = 0  # an output without gradient counts for nothing
    row = compare(RunState(1, 2.0, {"a.q": delta}, limit.moments), run).iloc[1]
    rows = delta[[0, 1, 3]]
    dots = (x @ rows.T) ** 2 / np.square(rows).sum(1)
    assert row["r_sign"] == pytest.approx(math.pi / 2 * 3 * np.square(x).sum() / dots.sum())


def test_a_limit_that_has_not_moved_has_no_distance():
    _, limit, run = snapshots()
    still = RunState(0, 2.0, {"a.q": np.zeros((4, 6))}, limit.moments)
    per_layer = compare(still, run).query("measure != 'loss'")
    assert per_layer["distance"].isna().all()
    assert all(math.isnan(value) for value in per_layer["r_align"])
