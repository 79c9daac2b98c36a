"""Final losses against the learning rate, alpha, the rank, and of cut adapters."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.figures import Absent
from study.figures.against_rate import (
    learning_rate_basins,
    learning_rate_basins_by_setting,
    loss_against_alpha,
)
from study.figures.final_loss import loss_against_rank, truncated_losses
from tests.analysis.losses import LORA, NO_PROBES, runs
from tests.figures.conftest import artists, only, panels, rows, said

RATES, RANKS = (1e-5, 1e-4, 1e-3, 1e-2), (4, 64, 1024)
P = {"lora": 1.0, "rslora": 0.5}


def parabola(cell):
    """In the log of the step."""
    gamma = 16.0 * min(cell["rank"], 1e6) ** -P[cell["scaling"]]
    return 2.0 + 0.05 * math.log(cell["lr"] * gamma / 2e-3) ** 2 + 0.02 * cell["seed"]


def sweep(loss=parabola, **axes):
    """Two rules and seeds with a loss before training and after 10 steps; NaN: it diverged."""
    usual = {"rates": RATES, "ranks": RANKS, "rules": (*LORA, ("rslora", math.nan))}
    cells, metrics = runs(loss, **{**usual, **axes}, seeds=(0, 1), steps=(10,))
    none = pd.DataFrame()
    return SimpleNamespace(cells=cells, metrics=metrics, probes=NO_PROBES, exponents=none)


def two_settings():
    """256 steps, and 64 with fewer ranks. The alphas of the rules are 16 and 4."""
    tables = sweep()
    of_rule = tables.cells["scaling"].map({"lora": 16.0, "rslora": 4.0})
    few = tables.cells.assign(alpha=of_rule, steps=64).query("rank != 64")
    few["cell_id"] += " few"
    tables.cells = pd.concat([tables.cells.assign(alpha=of_rule, steps=256), few])
    ended = tables.metrics.assign(cell_id=tables.metrics["cell_id"] + " few")
    tables.metrics = pd.concat([tables.metrics, ended])
    return tables


def products():
    """The best product of alpha and rate is 0.2."""
    axes = {"rates": (1e-3, 4e-3), "alphas": (16.0, 64.0, 256.0, 1024.0)}
    of_product = lambda cell: 2.0 + math.log(cell["alpha"] * cell["lr"] / 0.2) ** 2  # noqa: E731
    return sweep(of_product, ranks=(4, 256), rules=LORA, **axes)


def final(tables, **where):
    return rows(rows(tables.metrics, step=10).merge(tables.cells, on="cell_id"), **where)


def test_basins_are_means_over_seeds_and_the_best_is_marked():
    tables = sweep()
    tables.cells = tables.cells.query(f"rank != 4 or lr != {RATES[-1]}")  # a rate of the others
    figure = learning_rate_basins(tables)
    for scaling, rank in itertools.product(P, RANKS):
        means = final(tables, scaling=scaling, rank=rank).groupby("lr")["eval_loss"].mean()
        who = f"{scaling} p={P[scaling]:g} r={rank}"
        (basin,) = (one for one in artists(figure, "line") if one.get_gid() == f"line {who}")
        np.testing.assert_allclose(basin.get_xydata(), list(means.items()))
        edge = means.idxmin() in means.index[[0, -1]]
        gid = f"{'edge' if edge else 'best'} {who}"
        (mark,) = (one for one in artists(figure, gid) if one.get_gid() == gid)
        # The losses are a parabola: its minimum is the best rate, also between two rates tried.
        exact = means.idxmin() if edge else 2e-3 / (16.0 * rank ** -P[scaling])
        np.testing.assert_allclose(mark.get_xdata()[0], exact)
        assert mark.get_ydata()[0] == pytest.approx(0.05 * (1 + RANKS.index(rank)))
        assert (mark.get_markerfacecolor() == "white") == edge
    assert [ax.get_xscale() for ax in panels(figure)] == ["log", "log"]
    assert "at an edge" in said(figure)  # LoRA at rank 1024 needs a higher rate


def test_a_diverged_rate_is_a_cross_and_never_the_best_but_part_of_the_grid():
    tables = sweep(lambda c: math.nan if c["lr"] == 1e-2 else 3.0 + math.log10(1e-3 / c["lr"]) / 10)
    figure = learning_rate_basins(tables)
    assert list(only(figure, "cross lora p=1 r=4").get_xdata()) == [1e-2]
    assert only(figure, "best lora p=1 r=4").get_xdata() == pytest.approx([1e-3])
    assert 1e-2 not in only(figure, "line lora p=1 r=4").get_xdata()
    assert artists(figure, "edge") == []
    assert "×: a seed diverged" in said(figure)


def test_basins_end_at_the_last_rate_in_view():
    figure = learning_rate_basins(sweep(lambda c: 99.0 if c["lr"] == 1e-2 else parabola(c)))
    assert all(1e-3 < ax.get_xlim()[1] < 1e-2 for ax in panels(figure))


def test_losses_at_one_rate_and_at_each_ranks_best():
    tables = sweep()
    figure = loss_against_rank(tables)
    fixed = final(tables, rank=4.0).groupby("lr")["eval_loss"].mean().idxmin()
    at_fixed, at_best = panels(figure)[:2]
    assert at_fixed.get_title(loc="left") == f"learning rate {fixed:g}"
    for scaling in P:
        here = final(tables, scaling=scaling, lr=fixed)
        points = only(figure, f"points {scaling}", at_fixed)
        np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(here["eval_loss"]))
        line = only(figure, f"line {scaling}", at_fixed)
        np.testing.assert_allclose(line.get_ydata(), here.groupby("rank")["eval_loss"].mean())
    means = final(tables, scaling="lora").groupby(["rank", "lr"])["eval_loss"].mean()
    line = only(figure, "line lora", at_best)
    np.testing.assert_allclose(line.get_ydata(), means.groupby("rank").min())
    # Their best rates are 8e-3 and above; the grid ends at 1e-2.
    assert set(only(figure, "edge lora", at_best).get_xdata()) == {64.0, 1024.0}


def test_full_fine_tuning_is_a_line_at_its_best_rate():
    tables = sweep(rules=LORA)
    loss = {1e-5: 1.9, 1e-4: 1.7, 1e-3: 2.5}
    full = sweep(
        lambda cell: loss[cell["lr"]],
        rules=(("full", math.nan),),
        ranks=(math.inf,),
        rates=tuple(loss),
    )
    full.cells["cell_id"] = "full" + full.cells["cell_id"].astype(str)
    full.metrics["cell_id"] = "full" + full.metrics["cell_id"].astype(str)
    full.cells["alpha"] = 1.0
    both = {
        name: pd.concat([getattr(tables, name), getattr(full, name)], ignore_index=True)
        for name in ("cells", "metrics")
    }
    figure = loss_against_rank(SimpleNamespace(**vars(tables) | both))
    for panel in panels(figure)[:2]:
        assert set(only(figure, "full", panel).get_ydata()) == {1.7}


def test_one_setting_is_drawn_and_the_others_have_a_figure():
    tables = two_settings()
    figure = learning_rate_basins(tables)
    assert "steps 256" in said(figure)
    assert "steps 64" not in said(figure)
    heads = [ax.get_title() for ax in panels(figure)]
    assert [head.rpartition(" = ")[2] for head in heads] == ["16", "4"]
    every = panels(learning_rate_basins_by_setting(tables))
    assert len(every) == 4
    assert every[0].get_ylim() == every[1].get_ylim() != every[2].get_ylim()
    with pytest.raises(Absent, match="two settings"):
        learning_rate_basins_by_setting(sweep())


def test_lines_of_equal_products_of_alpha_and_rate_agree():
    figure = loss_against_alpha(products())
    low, high = panels(figure)
    assert [ax.get_title() for ax in (low, high)] == ["learning rate 0.001", "learning rate 0.004"]
    for ax, lr in ((low, 1e-3), (high, 4e-3)):
        line, best = only(figure, "line lora p=1 r=4", ax), only(figure, "best lora p=1 r=4", ax)
        np.testing.assert_allclose(line.get_xdata(), lr * np.array([16, 64, 256, 1024]))
        np.testing.assert_allclose(best.get_xdata(), 0.2)
    with pytest.raises(Absent, match="more alphas"):
        loss_against_alpha(sweep())


# truncations


def test_cut_losses_are_means_over_seeds_and_end_at_the_run():
    tables = sweep(rates=(1e-3, 1e-2), ranks=(*RANKS, math.inf))
    cut = [
        {"cell_id": cell["cell_id"], "kept": float(kept), "share": 0.5}
        | {"loss": 3.0 - math.log2(1 + min(kept, 2**11)) / 10 + 0.01 * cell["seed"] + worse}
        for cell in tables.cells.to_dict("records")
        for worse in [1.0 if cell["lr"] == 1e-2 else 0.0]  # no rank is best at this rate
        for kept in [0, *(2**k for k in range(11) if 2**k < cell["rank"]), cell["rank"]]
    ]
    with pytest.raises(Absent, match=r"probes\.truncations=log"):
        truncated_losses(tables)
    tables.truncations = pd.DataFrame(cut)
    figure = truncated_losses(tables)
    line, whole = (only(figure, f"{part} lora p=1 r=64") for part in ("cut", "whole"))
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 8, 16, 32, 64])
    np.testing.assert_allclose(line.get_ydata()[0], 3.0 - 0.1 + 0.005)
    assert list(whole.get_xydata()[0]) == list(line.get_xydata()[-1])
    assert "Base ($k = 0$): 3.00 to 4.01." in said(figure)
