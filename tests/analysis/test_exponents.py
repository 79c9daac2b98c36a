"""The exponents table: its rows, the values left out of a fit, and that curves are not mixed."""

import io
import math

import numpy as np
import pandas as pd
import pytest

from study.analysis import curve_columns, fit_exponents, fitted, with_verdicts
from study.analysis.grouping import CURVE_FIRST, FIT_COLUMNS
from study.analysis.intervals import mean_interval
from study.errors import StudyError

OUT = ("adapter_out", "rms")
GRAD = ("adapter_grad", "norm")


def layer_slope(layer: int) -> float:
    return -0.5 + 0.1 * layer


def power_law(cell, layer, step):
    return (layer + 2.0) * cell["rank"] ** layer_slope(layer)


def noisy(cell, layer, step):
    rng = np.random.default_rng([int(cell["rank"]), cell["seed"], layer + 1, step])
    return power_law(cell, layer, step) * math.exp(0.1 * rng.standard_normal())


def at(exponents, **where):
    for name, value in where.items():
        exponents = exponents[exponents[name] == value]
    return exponents


def test_rows_per_layer_kind_and_model(study, assert_exponent):
    found = fit_exponents(*study({OUT: power_law, GRAD: power_law}))
    per_layer = at(found, site="adapter_out")
    per_layer = per_layer[~per_layer["layer"].isin(["mean_log", "median"])]
    assert len(per_layer) == 6
    for number, (_, row) in enumerate(
        per_layer.sort_values(["block", "kind"], key=_q_first).iterrows()
    ):
        assert_exponent(row, layer_slope(number), 1e-12)
    # Layers 0, 2, 4 are q_proj and 1, 3, 5 down_proj.
    assert_exponent(at(found, kind="q_proj", layer="mean_log"), layer_slope(2), 1e-12)
    assert_exponent(at(found, kind="down_proj", layer="mean_log"), layer_slope(3), 1e-12)
    assert_exponent(at(found, kind="q_proj", layer="median"), layer_slope(2), 1e-12)
    everything = at(found, site="adapter_out", kind="all", layer="mean_log")
    assert_exponent(everything, layer_slope(2.5), 1e-12)
    assert_exponent(
        at(found, site="adapter_grad", kind="model", layer="model"), layer_slope(-1), 1e-12
    )
    assert len(at(found, site="adapter_grad")) == 1
    assert len(found) == 6 + 2 * 2 + 2 + 1

    row = everything.iloc[0]
    assert (row["seeds"], row["ranks"], row["points"], row["dropped"], row["layers"]) == (
        3,
        5,
        15,
        0,
        6,
    )
    assert (row["interval"], row["rank_min"], row["rank_max"], row["block"]) == (
        "seeds",
        4,
        1024,
        -1,
    )
    p05, median, p95 = np.quantile([layer_slope(n) for n in range(6)], [0.05, 0.5, 0.95])
    assert (row["layer_p05"], row["layer_median"], row["layer_p95"]) == pytest.approx(
        (p05, median, p95), abs=1e-12
    )
    assert found.loc[found["layer"] != "mean_log", "layer_p05"].isna().all()


def _q_first(column: pd.Series) -> pd.Series:
    return (
        column.map({"q_proj": 0, "down_proj": 1}).astype(int) if column.name == "kind" else column
    )


def test_columns_are_the_curves_then_the_fits(study):
    found = fit_exponents(*study({OUT: power_law}, dropout=0.1))
    assert list(found.columns) == [*CURVE_FIRST, "dropout", *FIT_COLUMNS]
    assert curve_columns(found) == [*CURVE_FIRST, "dropout"]
    stored = io.BytesIO()
    found.to_parquet(stored)
    pd.testing.assert_frame_equal(
        pd.read_parquet(stored), found, check_categorical=False, check_dtype=False
    )


def test_float32_tables_are_fitted_in_float64(study, assert_exponent):
    found = fit_exponents(*study({GRAD: power_law}, dtype="float32"))
    assert_exponent(found, layer_slope(-1), 1e-7)


@pytest.mark.parametrize(
    ("name", "values"),
    [("lr", (1e-3, 1e-2)), ("optimizer", ("sgd", "adamw")), ("never_heard_of", (1, 2))],
)
def test_a_sweep_over_anything_gives_curves_of_their_own(study, assert_exponent, name, values):
    """If curves were mixed, intervals would be wrong, or ranks would count twice."""

    def law(cell, layer, step):
        return cell["rank"] ** (0.25 if cell[name] == values[0] else -0.75)

    found = fit_exponents(*study({GRAD: law}, **{name: values}))
    assert len(found) == 2
    assert_exponent(at(found, **{name: values[0]}), 0.25, 1e-12)
    assert_exponent(at(found, **{name: values[1]}), -0.75, 1e-12)
    assert (found["points"] == 15).all()


def test_how_a_cell_went_does_not_tell_curves_apart(study):
    cells, probes = study({GRAD: power_law})
    went = cells.assign(
        seconds=np.arange(15.0),
        device=["cpu", "cuda", "cpu"] * 5,
        error=None,
        peak_memory_gb=np.arange(15.0),
    )
    pd.testing.assert_frame_equal(fit_exponents(went, probes), fit_exponents(cells, probes))


def test_values_that_are_lists_or_missing_tell_curves_apart(study):
    cells, probes = study({GRAD: power_law}, clip=(None, 1.0))
    cells["betas"] = [[0.9, 0.999]] * len(cells)
    found = fit_exponents(cells, probes)
    assert len(found) == 2
    assert found["clip"].isna().sum() == 1
    assert set(found["betas"]) == {"[0.9, 0.999]"}


def test_the_rules_p_is_filled_in(study):
    found = fit_exponents(*study({GRAD: power_law}, scaling=("lora", "rslora")))
    assert dict(zip(found["scaling"], found["exponent_p"], strict=True)) == {
        "lora": 1.0,
        "rslora": 0.5,
    }
    found = fit_exponents(*study({GRAD: power_law}, scaling="power", exponent=(0.25, 0.75)))
    assert sorted(found["exponent_p"]) == [0.25, 0.75]


def test_order_and_dtype_of_the_rows_are_nothing(study):
    cells, probes = study({OUT: noisy, GRAD: noisy}, steps=(0, 1))
    expected = fit_exponents(cells, probes)
    keys = ["cell_id", "layer", "kind", "site", "batch"]
    shuffled = probes.sample(frac=1, random_state=0).astype(dict.fromkeys(keys, object))
    found = fit_exponents(cells.sample(frac=1, random_state=1), shuffled)
    by = ["site", "stat", "step", "kind", "layer"]
    for one, other in zip(_sorted(found, by).items(), _sorted(expected, by).items(), strict=True):
        if one[1].dtype == np.float64:
            np.testing.assert_allclose(one[1], other[1], rtol=1e-12)
        else:
            assert list(one[1]) == list(other[1])


def _sorted(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return frame.sort_values(by, key=lambda column: column.astype(str)).reset_index(drop=True)


def test_only_the_cells_given_are_fitted(study):
    cells, probes = study({GRAD: noisy}, lr=(1e-3, 1e-2))
    found = fit_exponents(cells[cells["lr"] == 1e-3], probes)
    assert list(found["lr"]) == [1e-3]
    assert list(found["points"]) == [15]


def test_diverged_cells_count_until_they_diverge(study, assert_exponent):
    cells, probes = study({GRAD: power_law}, steps=(0, 2, 4))
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
    for step in (0, 2, 4):
        assert_exponent(found.loc[[step]].reset_index(), layer_slope(-1), 1e-12)

    unknown = fit_exponents(cells.drop(columns="diverged_step"), probes)
    assert list(unknown["points"]) == [12, 12, 12]


def test_infinite_rank_and_values_without_a_logarithm_are_left_out_and_counted(
    study, assert_exponent
):
    bad = {(4, 0): 0.0, (16, 1): -1.0, (64, 2): math.nan, (256, 0): math.inf}

    def law(cell, layer, step):
        return (
            1.0
            if math.isinf(cell["rank"])
            else bad.get((cell["rank"], cell["seed"]), power_law(cell, layer, step))
        )

    found = fit_exponents(*study({GRAD: law}, rank=(4, 16, 64, 256, 1024, math.inf)))
    assert_exponent(found, layer_slope(-1), 1e-12)
    # The first seed lacks two ranks, the others one each: these are fitted over the other three.
    assert (found["seeds"].item(), found["ranks"].item(), found["points"].item()) == (2, 3, 6)
    assert found["dropped"].item() == 9 + 3
    assert found["rank_max"].item() == 1024


def test_a_seed_without_the_end_ranks_is_left_out(study, assert_exponent):
    cells, probes = study({GRAD: power_law, OUT: power_law})
    gone = cells["cell_id"][(cells["seed"] == 1) & cells["rank"].isin([4, 1024])]
    found = fit_exponents(cells, probes[~probes["cell_id"].isin(gone)])
    row = at(found, site="adapter_grad")
    assert_exponent(row, layer_slope(-1), 1e-12)
    assert (
        row["seeds"].item(),
        row["ranks"].item(),
        row["points"].item(),
        row["dropped"].item(),
    ) == (2, 5, 10, 5)
    assert_exponent(at(found, kind="all", layer="mean_log"), layer_slope(2.5), 1e-12)


def test_the_layers_of_a_pool_are_counted_where_it_has_any(study):
    def law(cell, layer, step):
        lost = cell["rank"] == 1024 or (layer == 0 and cell["rank"] == 4 and cell["seed"] == 1)
        return math.nan if lost else power_law(cell, layer, step)

    found = at(fit_exponents(*study({OUT: law})), kind="all", layer="mean_log")
    assert (found["layers"].item(), found["points"].item()) == (5, 12)


def test_a_quantity_that_is_zero_has_no_row(study):
    def at_first(cell, layer, step):
        return 0.0 if step == 0 else power_law(cell, layer, step)

    found = fit_exponents(*study({("A_grad", "norm"): at_first}, steps=(0, 1)))
    assert set(found["step"]) == {1}


def test_one_seed_has_no_interval_over_seeds(study):
    found = fit_exponents(*study({GRAD: noisy}, seed=0))
    assert found["interval"].item() == "ranks"
    assert (found["seeds"].item(), found["df"].item()) == (1, 3)
    found = fit_exponents(*study({GRAD: noisy}, seed=0, rank=(4, 16)))
    assert found["interval"].item() == "none"
    assert found[["ci_low", "ci_high", "se_slope", "t_crit"]].isna().all(axis=None)


def test_two_ranks_and_several_seeds_have_an_interval(study):
    found = fit_exponents(*study({GRAD: noisy}, rank=(4, 16))).iloc[0]
    assert (found["interval"], found["seeds"], found["df"]) == ("seeds", 3, 2)
    values = [
        [math.log(noisy({"rank": rank, "seed": seed}, -1, 0)) for rank in (4, 16)]
        for seed in range(3)
    ]
    slopes = np.diff(values)[:, 0] / math.log(4)
    mean, low, high = mean_interval(slopes)
    assert (found["exponent"], found["ci_low"], found["ci_high"]) == pytest.approx(
        (mean, low, high)
    )


def test_a_bend_is_in_the_table(study):
    """r (r + 6): the slope is 1.47 over the lowest pair of ranks and 2.00 over the highest."""
    found = with_verdicts(
        fit_exponents(
            *study(
                {
                    GRAD: lambda cell, layer, step: (
                        noisy(cell, layer, step) ** 0.1 * cell["rank"] * (cell["rank"] + 6)
                    ),
                    OUT: noisy,
                }
            )
        )
    )
    row = at(found, site="adapter_grad").iloc[0]
    low, high = math.log(16 * 22 / (4 * 10)) / math.log(4), math.log(4 * 1030 / 262) / math.log(4)
    assert row["bent"]
    assert (row["slope_low"], row["slope_high"]) == pytest.approx(
        (low - 0.06, high - 0.06), abs=0.02
    )
    assert not at(found, site="adapter_out", kind="all", layer="mean_log")["bent"].item()


def test_a_study_of_one_rank_has_an_empty_table(study):
    found = fit_exponents(*study({GRAD: power_law}, rank=8))
    assert found.empty
    assert list(found.columns) == [*CURVE_FIRST, *FIT_COLUMNS]


def test_rank_min_and_weights_bend_a_curve_towards_its_asymptote(study, assert_exponent):
    """adapter_out^2 ~ r (r + 1 + 5): the slope is 1 at high rank only."""

    def curve(cell, layer, step):
        return math.sqrt(cell["rank"] * (cell["rank"] + 6))

    cells, probes = study({GRAD: curve})
    x = np.log([4.0, 16.0, 64.0, 256.0, 1024.0])
    y = 0.5 * np.log(np.exp(x) * (np.exp(x) + 6))
    assert_exponent(fit_exponents(cells, probes), np.polyfit(x, y, 1)[0], 1e-12)
    high = fit_exponents(cells, probes, rank_min=32)
    assert_exponent(high, np.polyfit(x[2:], y[2:], 1)[0], 1e-12)
    assert (high["rank_min"].item(), high["points"].item(), high["dropped"].item()) == (64, 9, 0)
    weighted = fit_exponents(cells, probes, weights="rank")
    assert_exponent(weighted, np.polyfit(x, y, 1, w=np.exp(x / 2))[0], 1e-12)
    assert weighted["exponent"].item() > fit_exponents(cells, probes)["exponent"].item()


def test_stats_can_be_chosen_and_nonfinite_is_no_quantity(study):
    laws = {("adapter_grad", name): power_law for name in ("norm", "rms", "nonfinite")}
    cells, probes = study(laws)
    assert set(fit_exponents(cells, probes)["stat"]) == {"norm", "rms"}
    assert set(fit_exponents(cells, probes, stats=["rms"])["stat"]) == {"rms"}


def test_batches_and_data_seeds_are_kept_apart(study):
    cells, train = study({GRAD: noisy})
    _, heldout = study({GRAD: power_law}, batch="heldout")
    found = fit_exponents(cells, pd.concat([train, heldout]))
    assert sorted(found["batch"]) == ["heldout", "train"]
    cells, probes = study({GRAD: noisy}, seed=0, data_seed=(5, 6, 7))
    cells["data_seed"] = [5, 6, 7] * 5
    cells["seed"] = 0
    assert fit_exponents(cells, probes)["seeds"].item() == 3


def test_predictions_come_from_the_caller(study):
    found = fit_exponents(*study({GRAD: power_law}), predict=lambda rows: 0.5 - rows["exponent_p"])
    assert found["predicted"].item() == -0.5
    assert fit_exponents(*study({GRAD: power_law}))["predicted"].isna().all()


def test_the_band_can_be_drawn_from_the_table_alone(study):
    found = fit_exponents(*study({GRAD: noisy}, seed=(0, 1, 2, 3, 4)))
    value, low, high = fitted(found.iloc[0], [4, 64, 1024])
    assert (low < value).all()
    assert (value < high).all()
    np.testing.assert_allclose(np.log(value[2] / value[0]) / np.log(256), found["exponent"].item())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "variance"}, "unknown weights 'variance': choose from none, rank"),
        ({"stats": ["rsm"]}, "unknown stat 'rsm': choose from norm"),
    ],
)
def test_unknown_words_are_named(study, changes, message):
    with pytest.raises(StudyError, match=f"^{message}$"):
        fit_exponents(*study({GRAD: power_law}), **changes)


def test_twins_are_refused(study):
    cells, probes = study({GRAD: power_law})
    cells.loc[1, ["seed", "data_seed"]] = 0
    with pytest.raises(
        StudyError,
        match=r"^cells 0{12}, 0{11}1 have the same rank 4, seed 0 and configuration: keep one$",
    ):
        fit_exponents(cells, probes)


def test_ranks_that_all_differ_in_something_else_are_refused(study):
    cells, probes = study({GRAD: power_law}, seed=0)
    cells["lr"] = 1e-3 * np.arange(1, 6)
    with pytest.raises(
        StudyError, match="no two ranks share a curve; the cells also differ in lr: sweep the rank"
    ):
        fit_exponents(cells, probes)


def test_a_row_that_is_there_twice_is_refused(study):
    cells, probes = study({GRAD: power_law})
    with pytest.raises(
        StudyError, match="probes has adapter_grad of model twice at step 0 of cell 0000"
    ):
        fit_exponents(cells, pd.concat([probes, probes.iloc[[3]]]))
