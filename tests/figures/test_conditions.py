"""The forward and backward conditions with predicted curves; gradients in units of eps."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents
from study.figures.conditions import conditions
from study.figures.eps import eps_over_ranks
from study.figures.selection import Absent
from study.theory import Layer, curve, slope

RANKS, SEEDS, EPS = (4, 16, 64, 256, 1024), (0, 1, 2), 1e-8
LAYERS = {
    "layers.0.q_proj": (64, 3.0, 1.0),
    "layers.0.v_proj": (64, 9.0, 0.1),
    "layers.1.down_proj": (256, 5.0, 30.0),
}
"""By layer: D, r_align (equal to r_sign), and the scale of its output."""
LORA, RSLORA = "lora p=1", "rslora p=0.5"


def lazy(
    *, optimizers=("sgd",), noise: float = 0.0, recorded: bool = True, eps: float = EPS
) -> SimpleNamespace:
    """A study exactly on the predicted curves, at steps 0 and 1: adapter_out, adapter_in_grad and
    the gradients of A and B."""
    cells, probes = [], []
    rng = np.random.default_rng(0)
    for optimizer in optimizers:
        for scaling, p in (("lora", 1.0), ("rslora", 0.5)):
            for rank in RANKS:
                for seed in SEEDS:
                    name = f"{optimizer}-{scaling}-{rank}-{seed}"
                    cells.append(
                        {
                            "cell_id": name,
                            "optimizer": optimizer,
                            "scaling": scaling,
                            "exponent": np.nan,
                            "lr": 1e-4,
                        }
                        | {
                            "rank": float(rank),
                            "alpha": 16.0,
                            "init": "kaiming",
                            "seed": seed,
                            "data_seed": seed,
                        }
                        | {"eps": eps if optimizer == "adamw" else np.nan, "status": "complete"}
                    )
                    for step in (0, 1):
                        probes += _rows(name, optimizer, p, rank, step, noise, rng)
    frame = pd.DataFrame(probes)
    if not recorded:
        frame = frame.drop(columns=["d_in", "d_out", "r_align", "r_sign"])
    tables = SimpleNamespace(cells=pd.DataFrame(cells), metrics=pd.DataFrame(), probes=frame)
    tables.exponents = fit_exponents(tables.cells, tables.probes)
    return tables


def _rows(
    name: str, optimizer: str, p: float, rank: int, step: int, noise: float, rng
) -> list[dict]:
    rows = []
    for layer, (d_in, align, size) in LAYERS.items():
        place = {
            "cell_id": name,
            "step": step,
            "layer": layer,
            "block": int(layer[7]),
            "kind": layer[9:],
        }
        place |= {"batch": "train", "d_in": d_in, "d_out": 32}
        known = Layer(d_in, 32, r_align=align, r_sign=align)
        for site in ("adapter_out", "adapter_in_grad", "A_grad", "B_grad"):
            if step == 0 and site != "B_grad":
                continue
            (value,) = curve(site, "rms", [rank], step=step, optimizer=optimizer, p=p, layer=known)
            rms = 1e-6 * size * value * np.exp(noise * rng.standard_normal())
            facts = {"r_align": align, "r_sign": align} if site == "adapter_out" else {}
            rows.append({**place, "site": site, "rms": rms, **facts})
    return rows


def pooled(tables: SimpleNamespace, site: str, scaling: str, step: int = 1) -> np.ndarray:
    """The geometric mean over layers, ranks by seeds."""
    rows = tables.probes.query("site == @site and step == @step").merge(tables.cells, on="cell_id")
    rows = rows[rows["scaling"] == scaling]
    return np.exp(
        rows.assign(log=np.log(rows["rms"])).groupby(["rank", "seed"])["log"].mean()
    ).to_numpy()


@pytest.fixture(scope="module")
def sgd() -> SimpleNamespace:
    return lazy()


@pytest.fixture(scope="module")
def adamw() -> SimpleNamespace:
    return lazy(optimizers=("adamw",), noise=0.05)


def test_points_are_the_mean_over_layers_of_the_log(adamw, read) -> None:
    figure = conditions(adamw)
    for ax, site in zip(figure.axes, ("adapter_out", "adapter_in_grad"), strict=True):
        points = next(a for a in read.artists(figure, f"points {LORA}") if a.axes is ax)
        np.testing.assert_allclose(
            np.sort(points.get_ydata()), np.sort(pooled(adamw, site, "lora"))
        )
        assert set(points.get_xdata()) == set(RANKS)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_predicted_curve_is_the_data_and_no_straight_line(optimizer: str, read) -> None:
    tables = lazy(optimizers=(optimizer,))
    figure = conditions(tables)
    for ax, site in zip(figure.axes, ("adapter_out", "adapter_in_grad"), strict=True):
        theory = next(a for a in read.artists(figure, f"curve {RSLORA}") if a.axes is ax)
        data = pooled(tables, site, "rslora").reshape(len(RANKS), -1)[:, 0]
        np.testing.assert_allclose(
            np.interp(RANKS, theory.get_xdata(), theory.get_ydata()), data, rtol=1e-6
        )
        line = next(a for a in read.artists(figure, f"line {RSLORA}") if a.axes is ax)
        off = np.log(np.interp(RANKS, line.get_xdata(), line.get_ydata()) / data)
        assert np.abs(off).max() > 0.03


def test_forward_and_backward_have_curves_of_their_own(sgd, read) -> None:
    figure = conditions(sgd)
    said = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in figure.axes]
    for words, site in zip(said, ("adapter_out", "adapter_in_grad"), strict=True):
        layers = [Layer(d, 32, r_align=align) for d, align, _ in LAYERS.values()]
        slopes = [
            slope(curve(site, "rms", RANKS, step=1, optimizer="sgd", p=0.5, layer=one), RANKS)
            for one in layers
        ]
        assert any(
            word.endswith(f", theory {np.mean(slopes):.2f}".replace("-", "−")) for word in words
        )
        assert words[-1] == "theory"
    assert said[0][0] != said[1][0]
    headings = [ax.get_legend().get_title().get_text() for ax in figure.axes]
    assert headings[0].startswith("forward")
    assert headings[1].startswith("backward")
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "log"]
    assert all("rms at step 1" in ax.get_ylabel() for ax in figure.axes)


def test_without_recorded_alignments_there_is_no_curve_and_the_text_says_so(read) -> None:
    figure = conditions(lazy(recorded=False))
    assert read.artists(figure, "curve") == []
    assert "was not recorded" in " ".join(read.texts(figure)).replace("\n", " ")


def test_both_conditions_are_needed(sgd) -> None:
    half = SimpleNamespace(**vars(sgd))
    half.probes = sgd.probes[sgd.probes["site"] != "adapter_in_grad"]
    with pytest.raises(Absent, match="both adapter_out and adapter_in_grad"):
        conditions(half)


# eps


def test_gradients_are_in_units_of_eps_at_the_first_step_with_both(adamw, read) -> None:
    figure = eps_over_ranks(adamw)
    for ax, site in zip(figure.axes, ("A_grad", "B_grad"), strict=True):
        points = next(a for a in read.artists(figure, f"points {LORA}") if a.axes is ax)
        np.testing.assert_allclose(
            np.sort(points.get_ydata()), np.sort(pooled(adamw, site, "lora") / EPS)
        )
        line = next(a for a in read.artists(figure, f"line {LORA}") if a.axes is ax)
        ends = np.interp(64.0, line.get_xdata(), line.get_ydata())
        assert ends == pytest.approx(np.median(points.get_ydata()), rel=0.2)
    assert "at step 1" in figure.axes[0].get_ylabel()


def test_the_threshold_is_drawn_and_named(adamw, read) -> None:
    figure = eps_over_ranks(adamw)
    assert [set(line.get_ydata()) for line in read.artists(figure, "eps")] == [{100.0}, {100.0}]
    for ax in figure.axes:
        assert "100: below, eps affects the updates" in [
            t.get_text() for t in ax.get_legend().get_texts()
        ]
        assert ax.get_ylim()[0] < 100 < ax.get_ylim()[1]


def test_optimizers_without_eps_are_left_out(sgd, read) -> None:
    with pytest.raises(Absent, match="no optimizer with an eps"):
        eps_over_ranks(sgd)
    both = eps_over_ranks(lazy(optimizers=("sgd", "adamw")))
    assert len([ax for ax in both.axes if ax.get_visible()]) == 2


@pytest.mark.parametrize("draw", [conditions, eps_over_ranks])
@pytest.mark.parametrize("optimizers", [("adamw",), ("sgd", "adamw"), ("adamw", "adam", "rmsprop")])
def test_nothing_collides(draw, optimizers, read) -> None:
    tables = lazy(optimizers=optimizers, noise=0.1)
    tables.cells["eps"] = tables.cells["eps"].fillna(EPS)
    tables.exponents = fit_exponents(tables.cells, tables.probes)
    assert read.collisions(draw(tables)) == []
