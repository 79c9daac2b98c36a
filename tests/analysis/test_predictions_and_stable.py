"""Predictions from tables and theory; p* is recovered from known slopes."""

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents, stable_exponents, with_predictions
from study.theory import Layer, mean_log_curve, predicted_exponent, stable_exponent
from tests.figures.conftest import row

from .conftest import RANKS, study_of
from .losses import p_of

D_IN, D_OUT, R_ALIGN = 576, 1536, 5.0
DESCENT = {"site": "adapter_update", "layer": "model"}


def gradient(cell, layer, step):
    return 3.0 * cell["rank"] ** (0.5 - p_of(cell))


def sgd_descent(cell, layer, step):
    return 0.1 * cell["rank"] ** (1 - 2 * p_of(cell))


def known(layer):
    """What is known of a layer, by its number. Alignments differ between layers."""
    return Layer(D_IN, D_OUT, R_ALIGN + layer)


@cache
def mean_log(rank, layer):
    """The finite-rank curve of adapter_out at p = 0, lowered by the bias of the log."""
    law = {"step": 1, "optimizer": "sgd", "p": 0.0, "layer": known(layer)}
    return mean_log_curve("adapter_out", "rms", [rank], **law).item()


def sgd_out(cell, layer, step):
    return (layer + 1) * cell["rank"] ** (-2 * p_of(cell)) * mean_log(cell["rank"], layer)


LAWS = {
    ("adapter_grad", "norm"): gradient,
    ("adapter_update", "descent"): sgd_descent,
    ("adapter_out", "rms"): sgd_out,
}


def recorded(probes):
    """As the probes record them: sizes in every row, alignments on adapter_out."""
    aligned = R_ALIGN + 2 * probes["block"] + (probes["kind"] == "down_proj")
    out = aligned.where(probes["site"] == "adapter_out")
    return probes.assign(d_in=D_IN, d_out=D_OUT, r_align=out)


def metrics_of(cells, steps=(0, 1), ratio=1.0):
    """Losses that fall by ``ratio`` times the fall of their linearisation."""
    rows = cells.merge(pd.DataFrame({"step": steps}), how="cross")
    after = [2.0 - ratio * sgd_descent(c, -1, 0) for c in rows.to_dict("records")]
    rows = rows.assign(loss=2.0, loss_after=after, clip_factor=1.0)
    return rows[["cell_id", "step", "loss", "loss_after", "clip_factor"]]


def predicted_of(cells, probes, **of_metrics):
    metrics = metrics_of(cells, **of_metrics)
    return with_predictions(fit_exponents(cells, probes), cells, metrics, probes)


def analysed(*, ratio=1.0, **axes):
    cells, probes = study_of(LAWS, steps=(0, 1), **axes)
    return predicted_of(cells, recorded(probes), ratio=ratio)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_finite_rank_law_is_predicted_exactly(seeds):
    """Of each layer and of their mean log, with the bias of each layer, from any seeds."""
    table = analysed(scaling=("lora", "rslora"), seed=seeds)
    rows = table[(table["site"] == "adapter_out") & (table["stat"] == "rms") & (table["step"] == 1)]
    rows = rows[rows["layer"] != "median"]
    assert rows["predicted"].to_numpy() == pytest.approx(rows["exponent"].to_numpy(), abs=1e-9)
    whole = rows[(rows["scaling"] == "lora") & (rows["kind"] == "all")]["predicted"].item()
    law = {"ranks": RANKS, "step": 1, "optimizer": "sgd", "p": 1.0}
    each = [predicted_exponent("adapter_out", "rms", layer=known(n), **law) for n in range(6)]
    assert whole == pytest.approx(np.mean(each))
    assert abs(whole - -1.0) > 0.04, "the asymptote alone would be far off"


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
def test_p_star_from_one_rule(scaling):
    stable = stable_exponents(analysed(scaling=scaling))
    rows = stable[(stable["step"] == 1) & stable["layer"].isin(["model", "mean_log"])]
    assert {"adapter_update", "adapter_grad", "adapter_out"} <= set(rows["site"])
    assert rows["p_star_limit"].to_numpy() == pytest.approx(0.5, abs=1e-9)
    assert rows["limit"].to_numpy() == pytest.approx(0.5)
    assert rows["p_star"].to_numpy() == pytest.approx(rows["predicted"].to_numpy(), abs=1e-9)
    out = rows[(rows["site"] == "adapter_out") & (rows["kind"] == "all")]
    law = {"step": 1, "optimizer": "sgd", "ranks": RANKS}
    each = [stable_exponent("adapter_out", "rms", layer=known(n), **law) for n in range(6)]
    assert out["p_star"].item() == pytest.approx(np.mean(each), abs=1e-6)
    assert (stable["method"] == "linear").all()
    assert stable["site"].iloc[0] == "adapter_update", "descent comes first"


@pytest.mark.parametrize(("ratio", "lazy"), [(1.0, 1.0), (0.95, 1.0), (0.8, 0.0), (1.2, 0.0)])
def test_the_lazy_gate(ratio, lazy):
    table = analysed(scaling="rslora", ratio=ratio)
    assert (table["lazy"] == lazy).all()
    late = table[(table["site"] == "adapter_out") & (table["step"] == 1)]
    late = late[late["layer"] != "median"]
    assert late["predicted"].notna().all() == bool(lazy)


def test_p_star_on_a_grid_is_where_slopes_cross_zero():
    def bent(cell, layer, step):
        return cell["rank"] ** (0.9 - p_of(cell) - 0.2 * p_of(cell) ** 2)  # 0 at p = 0.779...

    axes = {"steps": (4,), "scaling": "power", "exponent": (0.0, 0.5, 0.75, 0.8, 1.0)}
    exponents = predicted_of(*study_of({("adapter_update", "descent"): bent}, **axes), steps=(4,))
    stable = stable_exponents(exponents)
    root = (-1 + math.sqrt(1 + 4 * 0.2 * 0.9)) / (2 * 0.2)
    assert stable["method"].tolist() == ["grid"]
    assert stable["p_star"].item() == pytest.approx(root, abs=2e-3)
    outside = stable_exponents(exponents[exponents["exponent_p"] > 0.79])
    assert outside.empty, "slopes of one sign bracket nothing"


def test_clipped_sgd_scales_with_one_power_of_gamma_less():
    """Always clipped, descent scales as r^(1/2 - p): p* is 1/2 from any rule, not 3/4 from LoRA."""
    clipped = {
        ("adapter_update", "descent"): lambda c, layer, step: 0.1 * c["rank"] ** (0.5 - p_of(c))
    }
    for scaling in ("lora", "rslora"):
        cells, probes = study_of(clipped, steps=(0, 1), scaling=scaling)
        metrics = metrics_of(cells).assign(clip_factor=0.5, loss_after=np.nan)
        table = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
        assert set(table["clipped"]) == {"always"}
        stable = stable_exponents(table)
        assert stable["p_star"].to_numpy() == pytest.approx(0.5)
        assert stable["predicted"].to_numpy() == pytest.approx(0.5)


def test_ranks_of_which_some_are_clipped_have_no_p_star():
    cells, probes = study_of(LAWS, steps=(0, 1), scaling="lora")
    metrics = metrics_of(cells)
    metrics.loc[metrics["step"] == 1, "clip_factor"] = np.where(cells["rank"] > 64, 0.5, 1.0)
    probes = recorded(probes)
    table = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
    assert row(table, **DESCENT, step=0)["clipped"] == "never", (
        "later clipping does not affect step 0"
    )
    assert row(table, **DESCENT, step=1)["clipped"] == "some"
    stable = stable_exponents(table)
    assert set(stable.loc[stable["site"] == "adapter_update", "step"]) == {0}


@pytest.mark.parametrize(("gradient_over_eps", "p_star"), [(1e4, 1.0), (1e-4, 0.5), (1.0, None)])
def test_eps_decides_which_law_adam_has(gradient_over_eps, p_star):
    """Sign-like far above eps, linear far below; in between no prediction and no p*."""
    power = 2 if gradient_over_eps < 1 else 1
    laws = {
        ("adapter_update", "descent"): lambda c, layer, step: (
            0.1 * c["rank"] ** (1 - power * p_of(c))
        ),
        ("B_grad", "rms"): lambda c, layer, step: 1e-8 * gradient_over_eps * (1 + layer / 100),
    }
    cells, probes = study_of(laws, steps=(0,), scaling="rslora", optimizer="adamw", eps=1e-8)
    table = predicted_of(cells, probes, steps=(0,))
    found = row(table, **DESCENT, step=0)
    assert found["eps_ratio"] == pytest.approx(gradient_over_eps * 1.025), (
        "the median of layers 0 to 5"
    )
    stable = stable_exponents(table)
    if p_star is None:
        assert math.isnan(found["predicted"])
        assert stable.empty
    else:
        assert stable["p_star"].to_numpy() == pytest.approx(p_star)
        assert stable["limit"].to_numpy() == pytest.approx(p_star)


def test_a_curve_is_predicted_from_its_own_alignments():
    """A large learning rate changes r_align; the prediction at a small one must not change."""
    cells, probes = study_of(LAWS, steps=(0, 1), scaling="rslora", lr=(1e-6, 1e-1))
    large = set(cells.loc[cells["lr"] > 1e-3, "cell_id"])
    wild = probes["cell_id"].astype(str).isin(large).to_numpy()
    probes = recorded(probes)
    probes.loc[wild, "r_align"] *= 50
    table = predicted_of(cells, probes)
    rows = table[(table["layer"] == "mean_log") & (table["step"] == 1)]
    rows = rows[rows["site"] == "adapter_out"]
    tame, off = rows[rows["lr"] < 1e-3], rows[rows["lr"] > 1e-3]
    assert tame["predicted"].to_numpy() == pytest.approx(tame["exponent"].to_numpy(), abs=1e-9)
    assert (off["predicted"] - off["exponent"]).abs().min() > 0.1
