"""The exponents table: its rows, the values left out of a fit, its curves, and the summary."""

import math

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents, summary, with_verdicts
from study.analysis.wording import setting_labels
from study.errors import StudyError
from study.vocabulary.quantities import PRIMARY
from tests.figures.conftest import rows

from .conftest import study_of

OUT = ("adapter_out", "rms")
GRAD = ("adapter_grad", "norm")


def layer_slope(layer):
    return -0.5 + 0.1 * layer


def power_law(cell, layer, step):
    return (layer + 2.0) * cell["rank"] ** layer_slope(layer)


def test_rows_per_layer_kind_and_model():
    found = fit_exponents(*study_of({OUT: power_law, GRAD: power_law}))
    single = found[~found["layer"].isin(["mean_log", "median", "model"])]
    number = 2 * single["block"] + (single["kind"] == "down_proj")
    np.testing.assert_allclose(single["exponent"], layer_slope(number), atol=1e-12)
    # Layers 0, 2, 4 are q_proj and 1, 3, 5 down_proj.
    everything = rows(found, site="adapter_out", kind="all", layer="mean_log")
    for fit, layer in (
        (rows(found, kind="q_proj", layer="mean_log"), 2),
        (rows(found, kind="down_proj", layer="mean_log"), 3),
        (rows(found, kind="q_proj", layer="median"), 2),
        (everything, 2.5),
        (rows(found, site="adapter_grad", layer="model"), -1),
    ):
        assert fit["exponent"].item() == pytest.approx(layer_slope(layer), abs=1e-12)
    assert len(found) == 6 + 2 * 2 + 2 + 1

    [row] = everything.to_dict("records")
    counts = [row[name] for name in ("seeds", "ranks", "points", "dropped", "layers", "block")]
    assert counts == [3, 5, 15, 0, 6, -1]
    assert (row["interval"], row["rank_min"], row["rank_max"]) == ("seeds", 4, 1024)
    quantiles = np.quantile([layer_slope(n) for n in range(6)], [0.05, 0.5, 0.95])
    names = ("layer_p05", "layer_median", "layer_p95")
    assert [row[name] for name in names] == pytest.approx(quantiles.tolist(), abs=1e-12)
    assert found.loc[found["layer"] != "mean_log", "layer_p05"].isna().all()


def test_diverged_cells_count_until_they_diverge():
    cells, probes = study_of({GRAD: power_law}, steps=(0, 2, 4))
    lost = cells["rank"] == 1024
    probes.loc[
        probes["cell_id"].isin(cells.loc[lost, "cell_id"]) & (probes["step"] >= 2), "norm"
    ] = 1e6  # frozen weights
    cells.loc[lost, "status"] = "diverged"
    cells["diverged_step"] = np.where(lost, 2.0, np.nan)
    found = fit_exponents(cells, probes).set_index("step")
    assert list(found["points"]) == [15, 12, 12]
    assert list(found["dropped"]) == [0, 3, 3]
    assert list(found["rank_max"]) == [1024, 256, 256]
    assert list(found["exponent"]) == pytest.approx([layer_slope(-1)] * 3, abs=1e-12)

    unknown = fit_exponents(cells.drop(columns="diverged_step"), probes)
    assert list(unknown["points"]) == [12, 12, 12]


def test_infinite_rank_and_values_without_a_logarithm_are_left_out_and_counted():
    bad = {(4, 0): 0.0, (16, 1): -1.0, (64, 2): math.nan, (256, 0): math.inf}

    def law(cell, layer, step):
        return (
            1.0
            if math.isinf(cell["rank"])
            else bad.get((cell["rank"], cell["seed"]), power_law(cell, layer, step))
        )

    found = fit_exponents(*study_of({GRAD: law}, rank=(4, 16, 64, 256, 1024, math.inf)))
    assert found["exponent"].item() == pytest.approx(layer_slope(-1), abs=1e-12)
    # The first seed lacks two ranks, the others one each: all other cells are in the fit.
    assert (found["seeds"].item(), found["ranks"].item(), found["points"].item()) == (3, 5, 11)
    assert found["dropped"].item() == 4 + 3
    assert found["rank_max"].item() == 1024


def test_cells_that_are_no_curve_and_repeated_rows_are_refused():
    cells, probes = study_of({GRAD: power_law})
    twins = cells.copy()
    twins.loc[1, ["seed", "data_seed"]] = 0
    message = r"^cells 0{12}, 0{11}1 have the same rank 4, seed 0 and configuration: keep one$"
    with pytest.raises(StudyError, match=message):
        fit_exponents(twins, probes)
    with pytest.raises(StudyError, match="no two ranks share a curve; the cells also differ in lr"):
        fit_exponents(cells.assign(lr=1e-6 * cells["rank"]).query("seed == 0"), probes)
    with pytest.raises(StudyError, match="probes has adapter_grad of model twice at step 0"):
        fit_exponents(cells, pd.concat([probes, probes.iloc[[3]]]))


# What separates curves, and their labels.

SLOPES = {
    "betas": {"0.9,0.999": -0.5, "0.8,0.999": -0.25},
    "never_heard_of": {1: -0.5, 2: 0.25},
}


@pytest.mark.parametrize("column", SLOPES)
def test_sweeps_that_differ_in_one_column_are_two_curves(column):
    slopes = SLOPES[column]
    law = {("adapter_grad", "norm"): lambda cell, layer, step: cell["rank"] ** slopes[cell[column]]}
    fits = fit_exponents(*study_of(law, **{column: tuple(slopes)}))
    assert (fits["points"] == 15).all(), "a rank counts once for each seed"
    found = summary(with_verdicts(fits))
    labels = dict(zip(found["curve"], found["exponent"].round(9), strict=True))
    assert labels == {f"{column}={value}": slope for value, slope in slopes.items()}


def test_a_setting_is_named_by_what_it_has_otherwise_than_most():
    """A name has all values of one or two columns, or if no setting is the usual one."""
    found = pd.DataFrame({"dropout": [0.0, 0.1, 0.0], "warmup": [0, 0, 5], "alpha": 16})
    assert setting_labels(found, list(found)) == ["common setting", "dropout=0.1", "warmup=5"]
    both = ["dropout=0, warmup=0", "dropout=0.1, warmup=0", "dropout=0, warmup=5"]
    assert setting_labels(found, ["dropout", "warmup"]) == both
    others = pd.DataFrame({"alpha": [4.0, 256.0, 256.0], "lr": [1e-3, 1e-4, 1e-5]})
    full = ["alpha=4, lr=0.001", "alpha=256, lr=0.0001", "alpha=256, lr=1e-05"]
    assert setting_labels(others, list(others)) == full
    assert setting_labels(found, []) == [""] * 3


def test_the_summary_has_the_first_and_last_steps_of_the_primary_quantities():
    def law(cell, layer, step):
        noise = 1e-3 * math.sin(hash((cell["rank"], cell["seed"])))
        return float(cell["rank"] ** (-0.5 if cell["scaling"] == "lora" else 0.0) * math.exp(noise))

    laws = {(q.site, q.stat): law for q in PRIMARY} | {("layer_out", "rms"): law}
    fits = fit_exponents(*study_of(laws, steps=(0, 1, 3, 7), scaling=("lora", "rslora")))
    found = summary(with_verdicts(fits))
    assert list(dict.fromkeys(found["rule"])) == ["lora", "rslora"]
    lora = found[found["rule"] == "lora"]
    shown = {
        name: list(zip(own["step"], own["primary"], strict=True))
        for name, own in lora.groupby("quantity", sort=False)
    }
    assert shown == {
        "adapter_grad norm": [(0, True), (7, False)],
        "adapter_update descent": [(0, True), (1, True), (7, False)],
        "adapter_out rms": [(0, False), (7, True)],
        "adapter_in_grad rms": [(0, False), (7, True)],
    }
    assert set(lora["verdict"]) == {"shrinks"}
    assert set(found.loc[found["rule"] == "rslora", "verdict"]) == {"keeps its size"}
    assert set(found["curve"]) == {""}
