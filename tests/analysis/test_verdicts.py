"""Verdicts: the equivalence test against the textbook, and its rate of false claims."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study.analysis import VERDICTS, fit_exponents, holm, tost, with_verdicts
from study.analysis.fits import Strands, fit_lines
from study.vocabulary.quantities import PRIMARY

MARGIN = math.log(1.5) / math.log(1024 / 4)


def row(exponent, se, df=4, **changes):
    half_width = stats.t.ppf(0.975, df) * se if df else math.nan
    fields = {
        "scaling": "lora",
        "site": "adapter_grad",
        "stat": "norm",
        "batch": "train",
        "step": 0,
    }
    fields |= {"kind": "model", "layer": "model", "exponent": exponent, "se_slope": se, "df": df}
    fields |= {
        "ci_low": exponent - half_width,
        "ci_high": exponent + half_width,
        "rank_min": 4.0,
        "rank_max": 1024.0,
    }
    return fields | changes


def verdict(*rows):
    return list(with_verdicts(pd.DataFrame(rows))["verdict"])


def test_tost_is_the_larger_of_two_one_sided_tests():
    rng = np.random.default_rng(0)
    slope, se, df = rng.normal(0, 0.1, 500), rng.uniform(0.001, 0.1, 500), rng.integers(1, 9, 500)
    not_below = stats.t.sf((slope + MARGIN) / se, df)  # H0: slope <= -margin
    not_above = stats.t.cdf((slope - MARGIN) / se, df)  # H0: slope >= +margin
    found = tost(slope, se, df, MARGIN)
    np.testing.assert_allclose(found, np.maximum(not_below, not_above), rtol=1e-9)
    # Passing at 5 % is having the whole 90 % interval within the margin.
    half_width = stats.t.ppf(0.95, df) * se
    np.testing.assert_array_equal(
        found < 0.05, (slope - half_width > -MARGIN) & (slope + half_width < MARGIN)
    )


def test_the_four_words():
    assert VERDICTS == ("stable", "collapses", "explodes", "unclear")
    assert verdict(row(0.0, 0.005)) == ["stable"]
    assert verdict(row(0.01, 0.003)) == ["stable"]  # a slope for sure, and a small one
    assert verdict(row(-0.5, 0.01)) == ["collapses"]
    assert verdict(row(0.5, 0.01)) == ["explodes"]
    assert verdict(row(-0.5, 0.5)) == ["unclear"]
    assert verdict(row(0.0, 0.1)) == ["unclear"]  # no slope found is no stability shown
    assert verdict(row(0.0, math.nan, 0)) == ["unclear"]
    assert verdict(row(-0.5, math.nan, 0)) == ["unclear"]


def test_the_margin_is_a_ratio_over_the_ranks():
    found = with_verdicts(pd.DataFrame([row(0.0, 0.005), row(0.0, 0.005, rank_max=16.0, step=1)]))
    np.testing.assert_allclose(found["margin"], [MARGIN, math.log(1.5) / math.log(4)])
    change = (1024 / 4) ** MARGIN
    assert change == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("true", "seeds", "noise"),
    [(-0.5, 5, 0.05), (-0.5, 5, 1.0), (0.5, 2, 0.3), (MARGIN, 5, 0.05), (-MARGIN, 1, 0.1)],
)
def test_a_sloped_quantity_is_called_stable_at_most_once_in_20(true, seeds, noise):
    """At the margin the test has its full size; far beyond it, false claims practically vanish."""
    studies = 20_000
    found = simulate(true, seeds, noise, studies)
    stable = np.mean(found == "stable")
    assert stable <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)
    if abs(true) > 2 * MARGIN and noise < 0.5:
        assert stable < 0.001
        assert np.mean(found == ("collapses" if true < 0 else "explodes")) > (
            0.99 if seeds == 5 else 0.1
        )


def test_power_where_there_is_data_and_silence_where_there_is_not():
    assert np.mean(simulate(0.0, 5, 0.02, 4000) == "stable") > 0.99
    weak = simulate(0.0, 5, 1.0, 4000)
    assert np.mean(weak == "unclear") > 0.93
    assert np.mean(weak == "stable") < 0.05


def simulate(true, seeds, noise, studies):
    rng = np.random.default_rng(7)
    ranks = np.tile([4.0, 16.0, 64.0, 256.0, 1024.0], seeds)
    strands = Strands.of(np.zeros(len(ranks)), np.repeat(np.arange(seeds), 5))
    y = true * np.log(ranks)[:, None] + noise * rng.standard_normal((len(ranks), studies))
    fit = fit_lines(ranks, y, strands)
    half_width = stats.t.ppf(0.975, fit.df[0]) * fit.se_slope[0]
    table = pd.DataFrame({"exponent": fit.slope[0], "se_slope": fit.se_slope[0], "df": fit.df[0]})
    table = table.assign(ci_low=fit.slope[0] - half_width, ci_high=fit.slope[0] + half_width)
    table = table.assign(
        rank_min=4.0, rank_max=1024.0, site="adapter_grad", stat="norm", batch="train", step=0
    )
    table = table.assign(kind="model", layer="model", scaling="lora")
    assert with_verdicts(table)["primary"].all()
    return with_verdicts(table)["verdict"].to_numpy()


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.01, math.nan, 0.02]), [0.02, math.nan, 0.02])
    assert holm([]).shape == (0,)
    assert np.isnan(holm([math.nan])).all()


def test_holm_within_families_is_holm_family_by_family():
    rng = np.random.default_rng(1)
    p, family = rng.random(300) ** 3, rng.integers(0, 7, 300)
    p[::17] = math.nan
    found = holm(p, family)
    for label in range(7):
        np.testing.assert_array_equal(found[family == label], holm(p[family == label]))


def test_holm_keeps_false_claims_rare():
    """100 slopes at the margin: uncorrected, nearly every study calls one of them stable."""
    rng = np.random.default_rng(2)
    p = rng.random((2000, 100))
    family = np.repeat(np.arange(2000), 100)
    assert (p < 0.05).any(axis=1).mean() > 0.99
    wrong = (holm(p.ravel(), family).reshape(p.shape) < 0.05).any(axis=1).mean()
    assert wrong == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 2000))


def test_primary_rows_stand_alone_and_the_rest_is_corrected():
    others = [row(0.0, 0.012, site="A", stat=f"stat{n}") for n in range(50)]
    found = with_verdicts(pd.DataFrame([row(0.0, 0.012), *others]))
    p = tost(0.0, 0.012, 4, MARGIN)
    assert 0.05 / 50 < p < 0.05
    assert list(found["primary"]) == [True] + [False] * 50
    np.testing.assert_allclose(found["p_value"], p)
    np.testing.assert_allclose(found["p_holm"], [p] + [50 * p] * 50)
    assert list(found["verdict"]) == ["stable"] + ["unclear"] * 50


def test_stable_alone_but_not_corrected_is_unclear_and_nothing_worse():
    """Its interval may exclude 0: it is still not a collapse."""
    others = [row(-0.03, 0.008, site="A", stat=f"stat{n}") for n in range(50)]
    found = with_verdicts(pd.DataFrame(others))
    assert (found["p_value"] < 0.05).all()
    assert (found["ci_high"] < 0).all()
    assert set(found["verdict"]) == {"unclear"}


def test_families_are_what_is_read_side_by_side():
    """Curves, steps and poolings are separate families; the layers of a quantity are one."""
    quantity = {"site": "A", "stat": "rms"}
    pooled = [
        row(0, 0.01, kind=kind, layer=layer, **quantity)
        for kind in ("all", "q_proj")
        for layer in ("mean_log", "median")
    ]
    layers = [row(0, 0.01, kind="q_proj", layer=f"layers.{n}", **quantity) for n in range(10)]
    steps = [row(0, 0.01, step=step, kind="all", layer="mean_log", **quantity) for step in (1, 2)]
    curves = [row(0, 0.01, scaling="rslora", kind="all", layer="mean_log", **quantity)]
    found = with_verdicts(pd.DataFrame([*pooled, *layers, *steps, *curves]))
    times = (found["p_holm"] / found["p_value"]).round(6)
    assert list(times) == [1] * 4 + [10] * 10 + [1] * 3


def test_primary_quantities_are_found_in_a_real_table(study):
    def law(cell, layer, step):
        return cell["rank"] ** -0.5

    laws = {(q.site, q.stat): law for q in PRIMARY} | {("layer_out", "rms"): law}
    cells, probes = study(laws, steps=(0, 1, 2, 7), scaling=("lora", "rslora"))
    last_update = (probes["site"] == "adapter_update") & (probes["step"] == 7)
    found = with_verdicts(fit_exponents(cells, probes[~last_update]))
    chosen = found[found["primary"]]
    rows = set(
        zip(
            chosen["scaling"],
            chosen["site"],
            chosen["stat"],
            chosen["layer"],
            chosen["step"],
            strict=True,
        )
    )
    expected = {("adapter_grad", "norm", "model", 0), ("adapter_update", "descent", "model", 0)}
    expected |= {("adapter_update", "descent", "model", 1)}
    expected |= {("adapter_out", "rms", "mean_log", 7), ("adapter_in_grad", "rms", "mean_log", 7)}
    assert rows == {(rule, *quantity) for rule in ("lora", "rslora") for quantity in expected}
    assert len(chosen) == 10


def test_an_empty_table_stays_empty(study):
    found = with_verdicts(
        fit_exponents(*study({("A", "rms"): lambda cell, layer, step: 1.0}, rank=8))
    )
    assert found.empty
    assert "verdict" in found
