"""Losses against the learning rate and against the rank."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.figures.basins import learning_rate_basins
from study.figures.loss_by_rank import loss_against_rank
from study.figures.selection import Absent

RATES, RANKS = (1e-5, 1e-4, 1e-3, 1e-2), (4, 64, 1024)
P = {"lora": 1.0, "rslora": 0.5}
LORA, RSLORA = "lora p=1", "rslora p=0.5"


def sweep(
    *, optimizer="adamw", rates=RATES, ranks=RANKS, seeds=(0, 1), loss=None, lost=lambda cell: False
):
    """A sweep over learning rates. ``loss(cell)``: the final loss, by default a parabola in the log
    of the step size."""
    power = 2 if optimizer == "sgd" else 1

    def parabola(cell: dict) -> float:
        return (
            2.0
            + 0.05 * np.log(cell["lr"] * cell["gamma"] ** power / 2e-3) ** 2
            + 0.02 * cell["seed"]
        )

    cells, metrics = [], []
    for scaling, p in P.items():
        for rank in ranks:
            for lr in rates:
                for seed in seeds:
                    gamma = 16.0 * min(rank, 1e6) ** -p
                    cell = {
                        "cell_id": f"c{len(cells)}",
                        "optimizer": optimizer,
                        "scaling": scaling,
                        "lr": lr,
                    }
                    cell |= {"exponent": np.nan, "rank": float(rank), "alpha": 16.0, "gamma": gamma}
                    cell |= {"seed": seed, "data_seed": seed}
                    cell |= {"status": "diverged" if lost(cell) else "complete"}
                    cell["diverged_step"] = 5.0 if lost(cell) else np.nan
                    cells.append(cell)
                    metrics.append({"cell_id": cell["cell_id"], "step": 0, "eval_loss": 3.5})
                    end = np.nan if lost(cell) else (loss or parabola)(cell)
                    metrics.append({"cell_id": cell["cell_id"], "step": 10, "eval_loss": end})
    empty = pd.DataFrame()
    return SimpleNamespace(
        cells=pd.DataFrame(cells), metrics=pd.DataFrame(metrics), probes=empty, exponents=empty
    )


def final(tables, **where) -> pd.DataFrame:
    rows = tables.metrics[tables.metrics["step"] == 10].merge(tables.cells, on="cell_id")
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows


def named(read, figure, gid: str):
    (found,) = (a for a in read.artists(figure, gid) if a.get_gid() == gid)
    return found


def test_basins_are_means_over_seeds_and_the_best_is_marked(read) -> None:
    tables = sweep()
    figure = learning_rate_basins(tables)
    for scaling, who in (("lora", LORA), ("rslora", RSLORA)):
        for rank in RANKS:
            means = final(tables, scaling=scaling, rank=rank).groupby("lr")["eval_loss"].mean()
            basin = named(read, figure, f"basin {who} r={rank}")
            np.testing.assert_allclose(basin.get_xdata(), means.index)
            np.testing.assert_allclose(basin.get_ydata(), means)
            best, edge = means.idxmin(), means.idxmin() in (RATES[0], RATES[-1])
            mark = named(read, figure, f"{'edge' if edge else 'best'} {who} r={rank}")
            assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (best, means.min())
            assert (mark.get_markerfacecolor() == "white") == edge
    axes = [ax for ax in figure.axes if ax.get_label() != "legend"]
    assert [ax.get_xscale() for ax in axes] == ["log", "log"]
    assert [ax.get_xlabel() for ax in axes] == ["learning rate"] * 2
    assert "at an edge" in " ".join(read.texts(figure))  # LoRA at rank 1024 needs a higher rate


def test_a_diverged_rate_is_a_cross_and_never_the_best_but_part_of_the_grid(read) -> None:
    tables = sweep(
        lost=lambda c: c["lr"] == 1e-2 and c["seed"] == 1,
        loss=lambda c: 3.0 + np.log10(1e-3 / c["lr"]) / 10,
    )
    figure = learning_rate_basins(tables)
    assert list(named(read, figure, f"cross {LORA} r=4").get_xdata()) == [1e-2]
    assert list(named(read, figure, f"best {LORA} r=4").get_xdata()) == [1e-3]
    assert 1e-2 not in named(read, figure, f"basin {LORA} r=4").get_xdata()
    assert read.artists(figure, "edge") == []
    assert "×: diverged" in " ".join(read.texts(figure))


def test_losses_at_the_best_rate_of_the_lowest_rank(read) -> None:
    tables = sweep()
    figure = loss_against_rank(tables)
    fixed = final(tables, rank=4.0).groupby("lr")["eval_loss"].mean().idxmin()
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == f"learning rate {fixed:g}"
    for scaling, who in (("lora", LORA), ("rslora", RSLORA)):
        rows = final(tables, scaling=scaling, lr=fixed)
        points = next(a for a in read.artists(figure, f"points {who}") if a.axes is ax)
        np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(rows["eval_loss"]))
        line = next(a for a in read.artists(figure, f"line {who}") if a.axes is ax)
        np.testing.assert_allclose(line.get_ydata(), rows.groupby("rank")["eval_loss"].mean())
    assert ax.get_xlabel() == "rank $r$"


def test_losses_at_each_ranks_best_rate(read) -> None:
    tables = sweep()
    figure = loss_against_rank(tables)
    ax = figure.axes[1]
    line = next(a for a in read.artists(figure, f"line {LORA}") if a.axes is ax)
    best = (
        final(tables, scaling="lora")
        .groupby(["rank", "lr"])["eval_loss"]
        .mean()
        .groupby("rank")
        .min()
    )
    np.testing.assert_allclose(line.get_ydata(), best)
    edge = next(a for a in read.artists(figure, f"edge {LORA}") if a.axes is ax)
    assert set(edge.get_xdata()) == {
        64.0,
        1024.0,
    }  # their best rates are 8e-3 and above; the grid ends at 1e-2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rules_that_differ_by_step_size_alone_agree_at_matched_steps(optimizer: str, read) -> None:
    power = 2 if optimizer == "sgd" else 1
    # Linear in log lr, so that interpolation is exact. The rule matters only through gamma.
    tables = sweep(
        optimizer=optimizer,
        loss=lambda c: 3.0 - 0.1 * np.log(c["lr"] * c["gamma"] ** power),
        ranks=(4, 16, 64),
    )
    figure = loss_against_rank(tables)
    ax = figure.axes[2]
    assert "matched" in ax.get_title(loc="left")
    lines = [
        next(a for a in read.artists(figure, f"line {who}") if a.axes is ax)
        for who in (LORA, RSLORA)
    ]
    assert len(lines[0].get_xdata()) >= 2
    np.testing.assert_array_equal(lines[0].get_xdata(), lines[1].get_xdata())
    np.testing.assert_allclose(lines[0].get_ydata(), lines[1].get_ydata())
    apart = [
        next(a for a in read.artists(figure, f"line {who}") if a.axes is figure.axes[0])
        for who in (LORA, RSLORA)
    ]
    assert np.abs(apart[0].get_ydata()[-1] - apart[1].get_ydata()[-1]) > 0.1


def test_missing_data_are_named() -> None:
    with pytest.raises(Absent, match="two learning rates"):
        learning_rate_basins(sweep(rates=(1e-3,)))
    with pytest.raises(Absent, match="two ranks"):
        loss_against_rank(sweep(ranks=(4,)))
    tables = sweep()
    tables.metrics = tables.metrics[tables.metrics["step"] == 0]
    with pytest.raises(Absent, match="no finished run"):
        loss_against_rank(tables)
    tables.metrics = tables.metrics.iloc[:0]
    with pytest.raises(Absent, match="no held-out loss"):
        learning_rate_basins(tables)
