"""Pooling over layers: layers count the same, and the same layers are pooled at every rank."""

import numpy as np
import pytest

from study.analysis.fits import Strands
from study.analysis.pooling import pool, quantiles


@pytest.fixture
def two_seeds():
    return Strands.of(np.zeros(6), np.repeat([0, 1], 3))


def test_mean_and_median_of_the_log(two_seeds):
    y = np.random.default_rng(0).standard_normal((6, 7))
    mean, median, layers = pool(y, two_seeds)
    np.testing.assert_allclose(mean, y.mean(axis=1))
    np.testing.assert_allclose(median, np.median(y, axis=1))
    assert (layers == 7).all()


def test_one_huge_layer_does_not_set_the_exponent(two_seeds):
    """19 flat layers and a steep one with 95 % of the energy, which a pooled norm would follow."""
    x = np.tile(np.log([4.0, 64.0, 1024.0]), 2)
    y = np.zeros((6, 20))
    y[:, 0] = 0.5 * np.log(19 * 19) + x
    mean, median, _ = pool(y, two_seeds)
    assert np.polyfit(x, mean, 1)[0] == pytest.approx(1 / 20)
    assert np.polyfit(x, median, 1)[0] == pytest.approx(0)
    assert np.polyfit(x, 0.5 * np.log(np.exp(2 * y).sum(axis=1)), 1)[0] > 0.9


def test_a_layer_that_overflows_at_one_rank_makes_no_slope(two_seeds):
    y = np.zeros((6, 4))
    y[:, 3] = 8.0
    y[2, 3] = np.nan  # at the first seed's highest rank
    mean, _, layers = pool(y, two_seeds)
    np.testing.assert_array_equal(layers, [3, 3, 3, 4, 4, 4])
    np.testing.assert_array_equal(mean, [0, 0, 0, 2, 2, 2])


def test_a_cell_without_anything_takes_no_layer_from_the_others(two_seeds):
    y = np.ones((6, 4))
    y[1] = np.nan
    mean, median, layers = pool(y, two_seeds)
    np.testing.assert_array_equal(layers, [4, 0, 4, 4, 4, 4])
    assert np.isnan(mean[1])
    assert np.isnan(median[1])
    assert np.isfinite(np.delete(mean, 1)).all()


def test_quantiles_are_numpys():
    rng = np.random.default_rng(1)
    values = rng.standard_normal((200, 9))
    values[rng.random(values.shape) < 0.4] = np.nan
    values[0] = np.nan
    q = [0.05, 0.5, 0.95, 1.0]
    found = quantiles(values, q)
    np.testing.assert_allclose(found[:, 1:], np.nanquantile(values[1:], q, axis=1), rtol=1e-12)
    assert np.isnan(found[:, 0]).all()
