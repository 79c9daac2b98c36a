"""Predictions join the tables to theory; p* is recovered from slopes that are known."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents, lazy_ratios, stable_exponents, with_predictions
from study.theory import Layer, predicted_exponent, stable_exponent

Study = Callable[..., tuple[pd.DataFrame, pd.DataFrame]]
D_IN, D_OUT, R_ALIGN = 576, 1536, 5.0


def p_of(cell: dict) -> float:
    return {"lora": 1.0, "rslora": 0.5}.get(cell["scaling"], cell["exponent"])


def gradient(cell: dict, layer: int, step: int) -> float:
    return 3.0 * cell["rank"] ** (0.5 - p_of(cell))


def sgd_descent(cell: dict, layer: int, step: int) -> float:
    return 0.1 * cell["rank"] ** (1 - 2 * p_of(cell))


def sgd_out(cell: dict, layer: int, step: int) -> float:
    r, rho = cell["rank"], 2 + R_ALIGN - 1.2 * R_ALIGN / D_IN  # what theory's own uniform init has
    return (layer + 1) * r ** (-2 * p_of(cell)) * math.sqrt(r * (r - 1 + rho))


LAWS = {("adapter_grad", "norm"): gradient, ("adapter_update", "descent"): sgd_descent, ("adapter_out", "rms"): sgd_out}


def recorded(probes: pd.DataFrame) -> pd.DataFrame:
    """As the probes record them: sizes in every row, alignments on adapter_out."""
    out = (probes["site"] == "adapter_out").to_numpy()
    return probes.assign(d_in=D_IN, d_out=D_OUT, r_align=np.where(out, R_ALIGN, np.nan))


def metrics_of(cells: pd.DataFrame, steps: tuple[int, ...] = (0, 1), ratio: float = 1.0) -> pd.DataFrame:
    """Losses that fall by ``ratio`` times what their linearisation says."""
    rows = [
        {"cell_id": c["cell_id"], "step": s, "loss": 2.0, "loss_after": 2.0 - ratio * sgd_descent(c, -1, s)}
        for c in cells.to_dict("records")
        for s in steps
    ]
    return pd.DataFrame(rows).assign(clip_factor=1.0)


def analysed(study: Study, *, ratio: float = 1.0, **axes: object) -> pd.DataFrame:
    cells, probes = study(LAWS, steps=(0, 1), **axes)
    probes = recorded(probes)
    return with_predictions(fit_exponents(cells, probes), cells, metrics_of(cells, ratio=ratio), probes)


def test_a_finite_rank_law_is_predicted_exactly(study: Study) -> None:
    table = analysed(study, scaling=("lora", "rslora"))
    rows = table[(table["site"] == "adapter_out") & (table["stat"] == "rms") & (table["step"] == 1)]
    assert {"mean_log", "median"} < set(rows["layer"])
    assert rows["predicted"].to_numpy() == pytest.approx(rows["exponent"].to_numpy(), abs=1e-9)
    layer = Layer(d_in=D_IN, d_out=D_OUT, r_align=R_ALIGN)
    lora = rows[rows["scaling"] == "lora"].iloc[0]
    expected = predicted_exponent(
        "adapter_out", "rms", (4, 16, 64, 256, 1024), step=1, optimizer="sgd", p=1.0, layer=layer
    )
    assert lora["predicted"] == pytest.approx(expected)
    assert abs(lora["predicted"] - -1.0) > 0.05, "the asymptote alone would be far off"


def test_without_alignments_there_is_no_prediction_where_a_curve_needs_them(study: Study) -> None:
    cells, probes = study(LAWS, steps=(0, 1), scaling="rslora")
    table = with_predictions(fit_exponents(cells, probes), cells, metrics_of(cells), probes)
    assert table.loc[table["site"] == "adapter_out", "predicted"].isna().all()
    assert (table.loc[table["site"] == "adapter_grad", "predicted"] == 0).all()


def test_p_star_from_one_rule(study: Study) -> None:
    for scaling in ("lora", "rslora"):
        stable = stable_exponents(analysed(study, scaling=scaling))
        for site, wide, limit in (
            ("adapter_update", True, 0.5),
            ("adapter_grad", True, 0.5),
            ("adapter_out", False, 0.5),
        ):
            rows = stable[(stable["site"] == site) & (stable["layer"] == ("model" if wide else "mean_log"))]
            rows = rows[rows["step"] == 1]
            assert len(rows) >= 1
            assert rows["p_star_limit"].to_numpy() == pytest.approx(limit, abs=1e-9)
            assert rows["limit"].to_numpy() == pytest.approx(limit)
            assert rows["p_star"].to_numpy() == pytest.approx(rows["predicted"].to_numpy(), abs=1e-9)
    out = stable[(stable["site"] == "adapter_out") & (stable["layer"] == "mean_log") & (stable["kind"] == "all")]
    expected = stable_exponent(
        "adapter_out", "rms", step=1, optimizer="sgd", ranks=(4, 16, 64, 256, 1024), layer=Layer(D_IN, D_OUT, R_ALIGN)
    )
    assert out[out["step"] == 1]["p_star"].item() == pytest.approx(expected, abs=1e-6)
    assert (stable["method"] == "linear").all()
    assert stable["few_seeds"].all(), "three seeds are few"
    assert stable["site"].iloc[0] == "adapter_update", "descent comes first"


def test_a_wrong_rule_is_not_predicted(study: Study) -> None:
    """Data of SGD under a sign-like name: predictions must miss by what theory says they differ."""
    table = analysed(study, scaling="rslora", optimizer="signsgd")
    row = table[(table["site"] == "adapter_update") & (table["layer"] == "model") & (table["step"] == 0)].iloc[0]
    assert row["exponent"] == pytest.approx(0.0, abs=1e-9)
    assert row["predicted"] == pytest.approx(0.5)


@pytest.mark.parametrize(("ratio", "lazy"), [(1.0, 1.0), (0.95, 1.0), (0.8, 0.0), (1.2, 0.0)])
def test_the_lazy_gate(study: Study, ratio: float, lazy: float) -> None:
    table = analysed(study, scaling="rslora", ratio=ratio)
    assert (table["lazy"] == lazy).all()
    late = table[(table["site"] == "adapter_out") & (table["step"] == 1)]
    assert late["predicted"].notna().all() == bool(lazy)


def test_lazy_ratios_are_actual_over_linearised(study: Study) -> None:
    cells, probes = study(LAWS, steps=(0, 1), scaling="rslora")
    ratios = lazy_ratios(metrics_of(cells, ratio=0.7), probes)
    assert len(ratios) == 2 * len(cells)
    assert ratios["ratio"].to_numpy() == pytest.approx(0.7)


def test_p_star_on_a_grid_is_where_slopes_cross_zero(study: Study) -> None:
    def bent(cell: dict, layer: int, step: int) -> float:
        return cell["rank"] ** (0.9 - p_of(cell) - 0.2 * p_of(cell) ** 2)  # crosses at p = 0.779..., not linearly

    cells, probes = study(
        {("adapter_update", "descent"): bent}, steps=(4,), scaling="power", exponent=(0.0, 0.5, 0.75, 0.8, 1.0)
    )
    exponents = fit_exponents(cells, probes).assign(predicted=np.nan)
    stable = stable_exponents(exponents)
    root = (-1 + math.sqrt(1 + 4 * 0.2 * 0.9)) / (2 * 0.2)
    assert stable["method"].tolist() == ["grid"]
    assert stable["p_star"].item() == pytest.approx(root, abs=2e-3)
    outside = stable_exponents(exponents[exponents["exponent_p"] > 0.79])
    assert outside.empty, "slopes of one sign bracket nothing"


def test_clipping_under_sgd_moves_the_prediction(study: Study) -> None:
    cells, probes = study(LAWS, steps=(0, 1), scaling="lora")
    fitted = fit_exponents(cells, recorded(probes))
    at = lambda table: table[(table["site"] == "adapter_update") & (table["layer"] == "model") & (table["step"] == 0)]  # noqa: E731
    plain = with_predictions(fitted, cells, metrics_of(cells), recorded(probes))
    always = with_predictions(fitted, cells, metrics_of(cells).assign(clip_factor=0.5), recorded(probes))
    some = metrics_of(cells)
    some.loc[some.index[0], "clip_factor"] = 0.5
    mixed = with_predictions(fitted, cells, some, recorded(probes))
    assert at(plain)["predicted"].item() == pytest.approx(-1.0)
    assert at(always)["predicted"].item() == pytest.approx(-0.5)
    assert math.isnan(at(mixed)["predicted"].item())
