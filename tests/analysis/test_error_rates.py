"""How often intervals cover the truth and words are false, in thousands of simulated studies.

A study has a common error per seed (its batch), which moves the level and the slope, and an
independent one per seed and rank (the draw of A).
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from research.blocks import BLOCK, ROOT
from study.analysis import fit_exponents, holm, stable_exponents, tost, with_verdicts
from study.analysis.expectations import judged
from study.analysis.fits import Floats, Lines, fit_lines, t_critical
from study.analysis.predictions import with_predictions
from study.analysis.text import table
from study.analysis.verdicts import moderated
from study.config.expectations import Primary
from study.vocabulary.quantities import PRIMARY
from tests.analysis.conftest import study_of

RANKS = np.array([4.0, 16.0, 64.0, 256.0, 1024.0])
MARGIN = math.log(1.5) / math.log(1024 / 4)


def lines(
    truth: float | Floats,
    *,
    studies: int,
    seeds: int = 5,
    ranks: Floats = RANKS,
    level: float = 1.0,
    tilt: float = 0.0,
    noise: float = 0.1,
    bend: float = 0.0,
    missing: float = 0.0,
    skewed: bool = False,
) -> Lines:
    """The fits of ``studies`` studies, ``[1, studies]``.

    ``level`` and ``tilt``: the common errors of a seed. ``noise``: that of a point. ``missing``:
    the share of cells that are missing at random. ``bend``: of the curve, whose line has the
    slope ``truth``. ``skewed``: the slopes of seeds are exponential.
    """
    rng = np.random.default_rng(11)
    x = np.log(ranks)[:, None]
    square = x**2 - np.polyval(np.polyfit(x[:, 0], x[:, 0] ** 2, 1), x)
    batch = level * rng.standard_normal((seeds, 1, studies))
    draw = rng.standard_exponential if skewed else rng.standard_normal
    slope = truth + tilt * (draw((seeds, 1, studies)) - skewed)
    y = (
        batch
        + slope * x
        + bend * square
        + noise * rng.standard_normal((seeds, len(ranks), studies))
    )
    if missing:
        y[rng.random(y.shape) < missing] = np.nan
    return fit_lines(ranks, y[None])


def assert_covers(covered: Any, what: str) -> None:
    share = float(np.mean(covered))
    assert 0.93 < share < 0.97, what


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 2},
        {"seeds": 5, "tilt": 0.05, "noise": 0.01},
        {"seeds": 3, "tilt": 0.05},
        {"seeds": 3, "ranks": RANKS[:2]},
    ],
    ids=str,
)
def test_the_interval_of_a_slope_covers_19_times_in_20(changes: dict[str, Any]) -> None:
    fit = lines(-0.5, studies=2_000, **changes)
    covered = np.abs(fit["slope"] + 0.5) < t_critical(fit["df"]) * fit["se_slope"]
    assert_covers(covered, str(changes))


@pytest.mark.parametrize(("seeds", "decided", "least"), [(3, 0.96, 0.90), (5, 0.99, 0.92)])
def test_ten_per_cent_of_the_cells_may_be_missing(seeds: int, decided: float, least: float) -> None:
    """Straight curves are covered as ever. Bent ones are covered less where a rank is left out,
    because half of the seeds lack it. A straight line is called bent in up to 10 %."""
    how = {"studies": 2_000, "seeds": seeds, "missing": 0.1, "noise": 0.05}
    for bend in (0.0, 0.05):
        fit = lines(-0.5, tilt=0.02, bend=bend, **how)
        covered = np.abs(fit["slope"] + 0.5) < t_critical(fit["df"]) * fit["se_slope"]
        is_decided = fit["seeds"] >= 3
        share = covered[is_decided].mean()
        assert is_decided.mean() > decided
        assert (least if bend else 0.935) < share < 0.97
        false = np.abs(fit["curvature"] - bend) >= t_critical(fit["df"]) * fit["se_curvature"]
        assert false[np.isfinite(fit["se_curvature"])].mean() < 0.10


@pytest.mark.parametrize("seeds", [3, 5])
def test_skewed_seeds_are_covered_less_as_the_caveat_says(seeds: int) -> None:
    """Exponential slopes: 88 % instead of 95 %, and 11 % of the words *stable* at the margin."""
    fit = lines(-0.5, studies=2_000, seeds=seeds, tilt=0.05, noise=0.005, skewed=True)
    share = (np.abs(fit["slope"] + 0.5) < t_critical(fit["df"]) * fit["se_slope"]).mean()
    how = {"studies": 2_000, "seeds": seeds, "tilt": 0.3 * MARGIN, "noise": 1e-3}
    stable = (words([MARGIN], skewed=True, **how) == "keeps its size").mean()
    assert 0.86 < share < 0.90
    assert 0.08 < stable < 0.13


def test_skewed_seeds_are_found_from_eight_seeds_on() -> None:
    how = {"studies": 2_000, "tilt": 0.05, "noise": 0.005}
    assert np.isnan(lines(0.0, seeds=7, skewed=True, **how)["p_skew"]).all()
    false, found = (
        (lines(0.0, seeds=20, skewed=skewed, **how)["p_skew"] < 0.05).mean()
        for skewed in (False, True)
    )
    assert false < 0.07
    assert found > 0.7


@pytest.mark.parametrize(("rows", "spread"), [(5, 1.0), (30, 0.0)])
def test_pooled_variances_keep_the_error_rate_and_decide_more(rows: int, spread: float) -> None:
    """Rows at the margin, three seeds. ``spread``: of the log true standard deviations."""
    rng = np.random.default_rng(3)
    studies, seeds, margin = 500, 3, 0.1
    sd = 0.02 * np.exp(spread * rng.standard_normal((studies, rows)))
    sample = sd[..., None] * rng.standard_normal((studies, rows, seeds))
    mean, own_df = sample.mean(axis=-1), np.full(rows, seeds - 1.0)
    own = sample.var(axis=-1, ddof=1), np.full((studies, rows), seeds - 1.0)
    pooled = np.swapaxes([moderated(variance, own_df) for variance in own[0]], 0, 1)
    false, decided = {}, {}
    for name, (variance, df) in (("own", own), ("pooled", pooled)):
        se = np.sqrt(variance / seeds)
        at_margin, exact = (
            np.array([holm(p) <= 0.05 for p in tost(mean + off, se, df, margin)])
            for off in (margin, 0.0)
        )
        false[name], decided[name] = at_margin.any(axis=1).mean(), exact.mean()
    assert false["pooled"] < 0.055
    assert decided["pooled"] > decided["own"]


THEORY, RIVAL = np.linspace(-1, 0, 12), np.full(12, -0.5)
PATTERN = np.resize([1, -1, -1, 1], 12)
EDGES = ((THEORY + 0.1, np.ones(12)), (1.1 * THEORY, THEORY), (THEORY + 0.1 * PATTERN, PATTERN))
"""True exponents at the edge of the tolerance, and the direction of the errors that rows share: in
the intercept, in the slope, and row by row."""
PRIMARY_TEST = Primary(
    what="primary",
    rows=["slope"],
    rival="none",
    rival_predicts=-0.5,
    tolerance=0.1,
    source="theory",
    refuted_by="a line",
)
Draw = Callable[[Any, tuple[int, ...]], Floats]
DRAWS: dict[str, Draw] = {
    "Gaussian": lambda rng, shape: rng.standard_normal(shape),
    "exponential": lambda rng, shape: rng.standard_exponential(shape) - 1,
    "lognormal": lambda rng, shape: (rng.lognormal(size=shape) - math.e**0.5) / 2.16,
}
"""Errors with mean 0 and standard deviation 1; the last two have a skewness of 2 and of 6."""


Edge = tuple[Floats, Floats]


def verdicts(
    edge: Edge, seeds: int, sd: float, count: int, draw: str = "Gaussian", missing: float = 0.0
) -> list[str]:
    """Of simulated primary tests. ``draw``: of the errors that the rows of a seed share. Each row
    also has its own, which is Gaussian and 0.3 times as large."""
    rng, found = np.random.default_rng(8), []
    truth, shared = edge
    for _ in range(count):
        error = DRAWS[draw](rng, (seeds, 1)) * shared + 0.3 * rng.standard_normal((seeds, 12))
        own = truth + sd * error
        own[rng.random(own.shape) < missing] = np.nan
        has = np.isfinite(own).any(axis=0)
        asked = PRIMARY_TEST, THEORY[has], RIVAL[has], own[:, has], np.zeros(has.sum())
        found.append(judged(*asked).verdict)
    return found


def false_agrees(seeds: int, count: int, **how: Any) -> float:
    """The largest share of the word *agrees*, at the three edges."""
    return max(verdicts(edge, seeds, 0.02, count, **how).count("agrees") for edge in EDGES) / count


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_primary_test_is_rarely_wrong(seeds: int) -> None:
    """Twelve exponents whose errors are partly common to a seed. True lines: on theory, on the edge
    of the tolerance, and on the rival. Skewed errors are as docs/measured.md says."""
    level = np.ones(12)
    assert verdicts((THEORY, level), seeds, 0.01, 100).count("agrees") > 0.95 * 100
    assert verdicts((RIVAL, level), seeds, 0.02, 100).count("differs") > 0.95 * 100
    assert verdicts((THEORY, level), seeds, 0.1, 100).count("differs") < 0.07 * 100
    assert false_agrees(seeds, 100) < 0.07
    assert 0.04 < false_agrees(seeds, 100, draw="exponential") < 0.16


def test_a_primary_test_of_one_row_is_about_its_mean():
    """True values: on theory, on the edge of the tolerance, and on the rival; three seeds."""
    draws = np.random.default_rng(8).standard_normal((200, 3, 1))

    def words(truth, sd):
        asked = PRIMARY_TEST, THEORY[:1], RIVAL[:1]
        return [judged(*asked, truth + sd * own, np.zeros(1)).verdict for own in draws]

    assert words(-1.0, 0.01).count("agrees") > 0.95 * 200
    assert words(-0.9, 0.02).count("agrees") < 0.05 * 200
    assert words(-0.5, 0.02).count("differs") > 0.95 * 200


def test_seeds_that_lack_a_row_are_not_one_seed() -> None:
    measured = np.array([[0.0, -0.5], [0.1, np.nan], [np.nan, -0.4]])
    asked = PRIMARY_TEST, measured[0], np.zeros(2)
    assert judged(*asked, measured, np.zeros(2)).verdict == "unclear"
    assert judged(*asked, measured[:1], np.zeros(2)).verdict == "one seed"
    of_one_row = PRIMARY_TEST, np.zeros(1), np.full(1, 0.5), measured[:2, :1]
    assert judged(*of_one_row, np.zeros(1)).verdict == "unclear", "two seeds cannot tell"


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize(("step", "method"), [(1, "linear"), (4, "grid")])
def test_the_interval_of_p_star_covers_19_times_in_20(
    step: int, method: str, missing: float
) -> None:
    """SGD's law r^(1 - 2p) under rules with p = 0, 1/2, 1, which share their draws and batches;
    three seeds. A layer is a study. ``missing``: the share of values without a logarithm."""
    rng = np.random.default_rng(4)
    errors = rng.standard_normal((5, 3, 1000))

    def law(cell: Any, layer: int, step: int) -> float:
        error = errors[int(np.searchsorted(RANKS, cell["rank"])), cell["seed"], layer]
        if rng.random() < missing:
            return math.nan
        return float(cell["rank"] ** (1 - 2 * cell["exponent"]) * math.exp(0.1 * error))

    axes = {"steps": (step,), "scaling": "power", "exponent": (0.0, 0.5, 1.0)}
    layers = tuple((f"layers.{n}", n, "q_proj") for n in range(1000))
    cells, probes = study_of({("delta_w", "norm"): law}, layers=layers, **axes)
    metrics = pd.DataFrame({"cell_id": cells["cell_id"], "step": step, "loss": 1.0})
    metrics = metrics.assign(loss_after=np.nan, clip_factor=1.0)
    found = stable_exponents(with_predictions(fit_exponents(cells, probes), cells, metrics, probes))
    found = found[found["layer"].str.startswith("layers") & (found["seeds"] == 3)]
    assert (found["method"] == method).all()
    found = found[found["ci_high"] > found["ci_low"]]
    covered = (found["ci_low"] < 0.5) & (found["ci_high"] > 0.5)
    assert_covers(covered, f"p*, {method}, {missing:g} missing")


def test_committed_intervals_hold_predictions() -> None:
    """The table of ``research.findings.coverage``, of SmolLM2's 210 layers: two standard errors of
    a share of 0.95 are 0.03. The eps of RMSprop lowers the slopes of delta_w by 0.0004, a quarter
    of the half-width of an interval. Theory approximates Adafactor and Muon."""
    page = (ROOT / "docs/evidence/stable_exponent.md").read_text()
    [table] = [text for _, name, text, _ in BLOCK.findall(page) if name == "coverage"]
    rows = [row for row in table.splitlines() if "of 210" in row]
    rows = [row for row in rows if "Adafactor" not in row and "Muon" not in row]
    assert len(rows) == 6
    for row in rows:
        shares = [int(share) for share in re.findall(r"(\d+) % of 210", row)]
        assert len(shares) == 4, row
        assert (90 if "RMSprop" in row else 92) <= min(shares) <= max(shares) <= 98, row


def words(truth: Sequence[float], *, studies: int, **how: Any) -> np.ndarray:
    """The words of ``studies`` families of rows with the slopes ``truth``, ``[studies, rows]``.

    Up to five rows are the primary rows of a curve; more are pooled rows of one step.
    """
    rows = len(truth)
    fit = lines(np.tile(truth, studies), studies=studies * rows, **how)
    table = pd.DataFrame({name: values[0] for name, values in fit.items()})
    table = table.rename(columns={"slope": "exponent"}).assign(batch="train")
    keys = ["site", "stat", "kind", "layer", "step"]
    if rows <= 5:
        asked = [
            (q.site, q.stat, q.kind, q.layer, 7 if at == "last" else at)
            for q in PRIMARY
            for at in q.primary_at
        ][:rows]
    else:
        asked = [("A", f"stat{n}", "all", "mean_log", 3) for n in range(rows)]
    places = pd.DataFrame(asked * studies, columns=keys, index=table.index)
    places.insert(0, "curve_id", np.repeat(np.arange(studies), rows))  # a curve of its own
    table = pd.concat([places, table], axis=1)
    found = with_verdicts(table)
    assert (found["primary"] == (rows <= 5)).all()
    return found["verdict"].astype(str).to_numpy().reshape(studies, rows)


FALSE = {
    # name: slopes in margins, and the words that are false for each
    "flat": ([0.0], ("shrinks", "grows")),
    "just inside": ([0.99], ("shrinks", "falls", "grows")),
    "at the margin": ([-1.0, 1.0, -1.0, 1.0, 2.0], ("keeps its size",)),
}


@pytest.mark.parametrize("rows", [5, 60])
@pytest.mark.parametrize("tilt", [0.3, 1.0])
@pytest.mark.parametrize("name", FALSE)
def test_a_family_rarely_has_a_false_word(name: str, tilt: float, rows: int) -> None:
    """``tilt``: the error of a seed's slope in margins."""
    slopes, claims = FALSE[name]
    truth = MARGIN * np.resize(slopes, rows)
    found = words(truth, studies=10_000 // rows, seeds=3, tilt=tilt * MARGIN, noise=1e-3)
    per_family = np.isin(found, claims).any(axis=1).mean()
    assert per_family < 0.05
    if name == "flat":
        changes = np.isin(found, ("shrinks", "grows", "falls", "rises")).any(axis=1).mean()
        assert changes < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(found))


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_straight_line_is_rarely_bent_and_a_bent_one_is_found(seeds: int) -> None:
    fit = lines(0.3, studies=2_000, seeds=seeds, noise=0.05)
    table = pd.DataFrame({name: values[0] for name, values in fit.items()})
    table = table.rename(columns={"slope": "exponent"})
    place = {"curve_id": np.arange(len(table)), "site": "A", "stat": "rms", "batch": "train"}
    place |= {"kind": "all", "layer": "mean_log", "step": 0}
    table = pd.concat([pd.DataFrame(place), table], axis=1)
    false = with_verdicts(table)["bent"].mean()
    bent = with_verdicts(table.assign(curvature=table["curvature"] + 0.1))["bent"].mean()
    assert false == pytest.approx(0.05, abs=0.01)
    assert bent > 0.95


def table_of_error_rates() -> str:
    """For docs/measured.md: ``python -m tests.analysis.test_error_rates``."""
    kinds = [{"draw": draw} for draw in DRAWS] + [{"missing": 0.2}]
    body = []
    for seeds in (3, 5, 8, 11, 20):
        shares = (false_agrees(seeds, 1_000, **kind) for kind in kinds)
        body.append([str(seeds), *(f"{100 * share:.1f} %" for share in shares)])
    return table(["seeds", *DRAWS, "Gaussian, 20 % of rows missing"], body)


if __name__ == "__main__":
    print(table_of_error_rates())
