"""Numbers of seeds: the probability of a decision against simulation, and against scipy's t."""

import math

import numpy as np
import pytest
from scipy import stats

from study.analysis.power import decided
from study.analysis.verdicts import beyond, tost


@pytest.mark.parametrize("n", [3, 7])
@pytest.mark.parametrize("off", [0.0, 0.06, 0.15])
@pytest.mark.parametrize("grid", [0.0, 0.02])
def test_the_probability_of_a_decision(n: int, off: float, grid: float) -> None:
    """Simulated with the tests that give the verdicts; the error of the grid is Gaussian."""
    rng = np.random.default_rng(1)
    sd, tolerance, level, studies = 0.05, 0.1, 0.05 / 4, 40_000
    sample = off + sd * rng.standard_normal((studies, n)) + grid * rng.standard_normal((studies, 1))
    critical = stats.t.ppf(1 - level / 2, n - 1)
    se = np.hypot(sample.std(axis=1, ddof=1) / math.sqrt(n), 1.96 * grid / critical)
    asked = sample.mean(axis=1), se, n - 1, tolerance
    found = decided(n, off, sd, tolerance, grid=grid, level=level)
    for part, p_values in zip(found, (tost(*asked), beyond(*asked)), strict=True):
        simulated = np.mean(p_values <= level)
        print(f"n={n} off={off} grid={grid}: {part:.4f}, simulated {simulated:.4f}")
        assert part == pytest.approx(simulated, abs=0.01)


def test_the_power_to_differ_is_that_of_a_noncentral_t() -> None:
    """Of one side; the other has almost no part in it."""
    n, off, sd, tolerance = 5, 0.3, 0.1, 0.1
    critical = stats.t.ppf(0.975, n - 1)
    expected = stats.nct.sf(critical, n - 1, (off - tolerance) / (sd / math.sqrt(n)))
    assert decided(n, off, sd, tolerance)[1] == pytest.approx(expected, abs=0.002)
