"""Pooling over layers: layers count the same, and the same layers are pooled at every rank."""

import numpy as np
import pytest

from study.analysis.exponents import pool

X = np.log([4.0, 64.0, 1024.0])


def test_one_huge_layer_does_not_set_the_exponent():
    """19 flat layers and a steep one with 95 % of the energy, which a pooled norm would follow."""
    y = np.zeros((1, 2, 3, 20))
    y[..., 0] = 0.5 * np.log(19 * 19) + X
    mean, median, _ = pool(y)
    assert np.polyfit(X, mean[0, 0], 1)[0] == pytest.approx(1 / 20)
    assert np.polyfit(X, median[0, 0], 1)[0] == pytest.approx(0)
    assert np.polyfit(X, 0.5 * np.log(np.exp(2 * y).sum(axis=-1))[0, 0], 1)[0] > 0.9


def test_a_layer_that_overflows_at_one_rank_makes_no_slope():
    y = np.zeros((1, 2, 3, 4))
    y[..., 3] = 8.0
    y[0, 0, 2, 3] = np.nan  # at the first seed's highest rank
    mean, _, layers = pool(y)
    np.testing.assert_array_equal(layers[0], [[3, 3, 3], [4, 4, 4]])
    np.testing.assert_array_equal(mean[0], [[0, 0, 0], [2, 2, 2]])


def test_a_cell_without_anything_takes_no_layer_from_the_others():
    y = np.ones((1, 2, 3, 4))
    y[0, 0, 1] = np.nan
    mean, median, layers = pool(y)
    np.testing.assert_array_equal(layers[0], [[4, 0, 4], [4, 4, 4]])
    assert np.isnan([mean[0, 0, 1], median[0, 0, 1]]).all()
    assert np.isfinite(mean).sum() == 5
