"""The numbers that the page computes in the browser, against the analysis in Python."""

import base64
import math

import numpy as np
import pytest
from playwright.sync_api import Browser

from study.analysis.fits import fit_lines, t_critical
from study.dashboard.document import PARTS
from study.dashboard.values import RESOLUTION, pack_values

UNPACK = """([header, bytes, steps, width]) => {
    const raw = Uint8Array.from(atob(bytes), letter => letter.charCodeAt(0));
    const values = new CellValues({ steps: [...Array(steps).keys()], ...header }, raw, width);
    const finite = value => (Number.isFinite(value) ? value : String(value));
    const word = value => (value === undefined ? "missing" : finite(value));
    return values.steps.map(s => [...Array(width).keys()].map(l => word(values.at(s, l))));
}"""


def unpacked(browser: Browser, values: np.ndarray, missing: np.ndarray) -> list[list[object]]:
    page = browser.new_page()
    page.add_script_tag(content=(PARTS / "values.js").read_text())
    header, packed = pack_values(values, missing)
    found = page.evaluate(UNPACK, [header, base64.b64encode(packed).decode(), *values.shape])
    page.close()
    return found


def test_every_kind_of_value_survives(browser: Browser) -> None:
    values = np.array([[0.0, 1e-3, -2.5, math.nan], [math.inf, -math.inf, 1e4, math.nan]])
    missing = np.array([[False] * 4, [False, False, False, True]])
    first, second = unpacked(browser, values.astype(np.float32), missing)
    assert [first[0], first[3]] == [0, "NaN"]
    assert [second[0], second[1], second[3]] == ["Infinity", "-Infinity", "missing"]
    found = [first[1], first[2], second[2]]
    assert found == pytest.approx([1e-3, -2.5, 1e4], rel=RESOLUTION / 2 + 1e-9)


@pytest.mark.parametrize(
    ("decades", "error"), [(12, RESOLUTION / 2), (75, 75 * math.log(10) / 32_000)]
)
def test_unpacked_values_have_the_promised_error(
    browser: Browser, decades: float, error: float
) -> None:
    draw = np.random.default_rng(0)
    size = 10 ** draw.uniform(-decades / 2, decades / 2, (7, 11))
    values = (size * draw.choice([-1, 1], (7, 11))).astype(np.float32)
    found = np.array(unpacked(browser, values, np.zeros(values.shape, bool)), float)
    assert np.abs(found / values - 1).max() <= error * 1.01


def test_lines_equal_those_of_the_analysis(browser: Browser) -> None:
    """Several seeds; one seed; seeds that lack some ranks; two ranks in all."""
    draw = np.random.default_rng(1)
    page = browser.new_page()
    page.add_script_tag(content=(PARTS / "fits.js").read_text())
    t = t_critical(np.arange(1, 201)).tolist()
    for ranks_of_seed in (
        [[4, 8, 64, 512]] * 3,
        [[4, 8, 64, 512]],
        [[4, 8, 64], [8, 64], [4, 64, 512]],
        [[4, 8, 64, 512]] * 4 + [[4, 8, 64]],
        [[4, 8, 64, 512]] + [[4, 8, 64]] * 4,
        [[4, 8, 64], [8, 64, 512], [4, 64, 512], [4, 8, 64, 512]],
        [[4, 8]] * 2,
        [[4, 8]],
    ):
        rows = [(seed, rank) for seed, ranks in enumerate(ranks_of_seed) for rank in ranks]
        seed, rank = np.array(rows).T
        value = np.exp(-0.5 * np.log(rank) + draw.normal(0, 0.1, len(rank)))
        ranks, place = np.unique(rank, return_inverse=True)
        y = np.full((1, len(ranks_of_seed), len(ranks), 1), np.nan)
        y[0, seed, place, 0] = np.log(value)
        lines = fit_lines(ranks, y)
        points = [
            {"rank": int(r), "seed": int(s), "value": float(v)}
            for r, s, v in zip(rank, seed, value, strict=True)
        ]
        found = page.evaluate(
            "([p, t]) => { const f = fitLine(p, t); return {...f, band: f.at(32)} }", [points, t]
        )
        slope, half = lines.slope[0, 0], (t_critical(lines.df) * lines.se_slope)[0, 0]
        assert found["slope"] == pytest.approx(slope, rel=1e-10)
        assert (found["seeds"], found["ranks"]) == (lines.seeds[0, 0], lines.ranks[0, 0])
        dx = math.log(32) - lines.log_rank_mean[0, 0]
        assert math.log(found["band"][0]) == pytest.approx(
            lines.log_stat_mean[0, 0] + slope * dx, rel=1e-9
        )
        if math.isnan(half):
            assert found["low"] is None
            continue
        assert [found["low"], found["high"]] == pytest.approx(
            [slope - half, slope + half], rel=1e-9
        )
        variance = (lines.se_mean**2 + 2 * dx * lines.cov + (dx * lines.se_slope) ** 2)[0, 0]
        width = t_critical(lines.df)[0, 0] * math.sqrt(variance)
        assert math.log(found["band"][2] / found["band"][0]) == pytest.approx(width, rel=1e-8)
    page.close()
