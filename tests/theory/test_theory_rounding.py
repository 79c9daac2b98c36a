"""The share that rounding loses, against a simulation that rounds to bf16."""

import numpy as np
import pytest

from study.theory.rounding import kept, swallowed

DRAWS = 1_000_000


def rounded(x):
    """To bf16, ties to even: the upper half of a float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def lost(d, D):
    return 1 - np.mean(d * D) / np.mean(d * d)


@pytest.mark.parametrize("rms", [0.37, 1.0, 1.4])
@pytest.mark.parametrize("ratio", [1e-1, 1e-2, 3e-3, 1e-3, 1e-4])
def test_it_agrees_with_a_simulation(rms, ratio):
    rng = np.random.default_rng(int(1e6 * rms * ratio))
    base, d = (size * rng.standard_normal(DRAWS) for size in (rms, rms * ratio))
    y = rounded(base)
    expected = swallowed(rms, rms * ratio)
    assert lost(d, rounded(y + d) - y) == pytest.approx(expected, abs=0.005)
    # Added before the base's output is rounded: nothing is lost.
    assert lost(d, rounded(base + d) - y) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("spacing", [0.5, 0.9, 1.1, 2.0, 4.0])
def test_one_spacing_agrees_with_poisson_summation(spacing):
    m = np.arange(1, 40)
    series = 1 + 2 * np.sum((-1.0) ** m * np.exp(-2 * (np.pi * m / spacing) ** 2))
    assert kept(spacing) == pytest.approx(series, abs=1e-8)


def test_an_adapter_without_an_output_has_no_share():
    np.testing.assert_array_equal(swallowed([1.0, 1.0], [0.0, 1e-9]).round(3), [np.nan, 1.0])
