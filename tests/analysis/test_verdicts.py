"""Verdicts: the words from the interval, the correction for many tests, and their power."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study.analysis import VERDICTS, holm, tost, with_verdicts
from study.analysis.power import decided
from study.analysis.verdicts import beyond
from study.vocabulary.quantities import PRIMARY

MARGIN = math.log(1.5) / math.log(1024 / 4)


PLACE = {"curve_id": "lora", "site": "adapter_grad", "stat": "norm", "batch": "train", "step": 0}
PLACE |= {"kind": "model", "layer": "model", "rank_min": 4.0, "rank_max": 1024.0}


def row(exponent, se, seeds=5, **changes):
    df = max(seeds - 1, 3 if seeds == 1 else 0)
    bend = {"curvature": 0.0, "se_curvature": 0.01}
    fields = {"exponent": exponent, "se_slope": se, "df": df, "seeds": seeds}
    return PLACE | fields | bend | changes


def verdict(*rows):
    return list(with_verdicts(pd.DataFrame(rows))["verdict"])


def test_the_printed_interval_decides_every_word_before_the_correction():
    """Inside the margin, outside it, without zero, or none of these; each row is tested alone."""
    rng = np.random.default_rng(0)
    slope, se = rng.normal(0, 0.1, 500), rng.uniform(0.001, 0.1, 500)
    df = rng.integers(2, 9, 500)
    half_width = stats.t.ppf(0.975, df) * se
    low, high = slope - half_width, slope + half_width
    within = (low > -MARGIN) & (high < MARGIN)
    expected = np.select(
        [high < -MARGIN, low > MARGIN, within, high < 0, low > 0],
        ["shrinks", "grows", "keeps its size", "falls", "rises"],
        "unclear",
    )
    assert set(expected) == set(VERDICTS) - {"one seed"}
    rows = [
        row(b, s, seeds=n + 1, site="A", step=step)
        for step, (b, s, n) in enumerate(zip(slope, se, df, strict=True))
    ]
    assert verdict(*rows) == list(expected)


def test_one_seed_has_no_verdict_and_two_are_unclear():
    found = with_verdicts(pd.DataFrame([row(-0.5, 0.001, seeds=n, step=n) for n in (1, 2, 3)]))
    assert list(found["verdict"]) == ["one seed", "unclear", "shrinks"]
    p_values = found[["p_stable", "p_slope", "p_beyond", "p_bent"]]
    assert p_values[:2].isna().all(axis=None)
    assert p_values[2:].notna().all(axis=None)
    assert not found["bent"].any()


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.01, math.nan, 0.02]), [0.02, math.nan, 0.02])
    assert holm([]).shape == (0,)
    assert np.isnan(holm([math.nan])).all()


TESTS = {"p_stable": 0.0, "p_slope": -0.04, "p_beyond": -0.1, "p_bent": 0.0}
"""The tests, each with a slope for which it has something to show."""


@pytest.mark.parametrize("name", TESTS)
def test_every_test_is_corrected_within_its_group(name):
    """Five primary rows are one group, fifty other rows another."""
    slope = TESTS[name]
    fields = {"curvature": 0.04, "se_curvature": 0.012}
    quantities = {(q.site, q.stat, q.kind, q.layer, at) for q in PRIMARY for at in q.primary_at}
    primary = [
        row(slope, 0.009, site=site, stat=stat, kind=kind, layer=layer, **fields)
        | {"step": 7 if at == "last" else at}
        for site, stat, kind, layer, at in quantities
    ]
    others = [row(slope, 0.009, site="A", stat=f"stat{n}", **fields) for n in range(50)]
    found = with_verdicts(pd.DataFrame([*primary, *others]))
    assert list(found["primary"]) == [True] * 5 + [False] * 50
    alone = {
        "p_stable": tost(slope, 0.009, 4, MARGIN),
        "p_slope": beyond(slope, 0.009, 4, 0.0),
        "p_beyond": beyond(slope, 0.009, 4, MARGIN),
        "p_bent": beyond(0.04, 0.012, 4, 0.0),
    }[name]
    np.testing.assert_allclose(found[name][:5], min(1.0, 5 * alone))
    np.testing.assert_allclose(found[name][5:], min(1.0, 50 * alone))


# Numbers of seeds: the probability of a decision.


@pytest.mark.parametrize("n", [3, 7])
@pytest.mark.parametrize("off", [0.0, 0.06, 0.15])
@pytest.mark.parametrize("grid", [0.0, 0.02])
def test_the_probability_of_a_decision(n, off, grid):
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
