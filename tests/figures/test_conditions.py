"""The forward and backward conditions with predicted curves; gradients in units of eps."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents, with_predictions
from study.figures.conditions import conditions
from study.figures.eps import eps_over_ranks
from study.figures.selection import Absent
from study.theory import Layer, mean_log_curve, slope

RANKS, SEEDS, EPS = (4, 16, 64, 256, 1024), (0, 1, 2), 1e-8
SMALL = 1e-15
"""An eps far below every gradient."""
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
    tables.exponents = analysed(tables)
    return tables


def analysed(tables: SimpleNamespace, lazy: bool = True) -> pd.DataFrame:
    """The exponents with their predictions. If not ``lazy``, every prediction from step 1 goes."""
    loss = {"loss": 2.0, "loss_after": 2.0 - (1e-3 if lazy else 0.5)}
    metrics = tables.cells[["cell_id"]].merge(pd.DataFrame({"step": [0, 1]}), how="cross")
    metrics = metrics.assign(**loss, clip_factor=1.0)
    update = {"site": "adapter_update", "batch": "train", "layer": "model", "kind": "model"}
    steps = metrics[["cell_id", "step"]].assign(**update, block=-1, descent=1e-3)
    probes = pd.concat([tables.probes, steps], ignore_index=True)
    fitted = fit_exponents(tables.cells, tables.probes)
    return with_predictions(fitted, tables.cells, metrics, probes)


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
            law = {"step": step, "optimizer": optimizer, "p": p, "layer": known}
            (value,) = mean_log_curve(site, "rms", [rank], **law)
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


def of_all_layers(tables: SimpleNamespace) -> list[tuple[str, pd.DataFrame]]:
    """By site of the two conditions: the exponents of the mean over all layers at step 1."""
    rows = tables.exponents.query("step == 1 and layer == 'mean_log' and kind == 'all'")
    return [(site, rows[rows["site"] == site]) for site in ("adapter_out", "adapter_in_grad")]


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


def test_the_slope_of_the_curve_is_the_prediction_of_the_table(read) -> None:
    tables = lazy(optimizers=("adamw",), noise=0.05, eps=SMALL)
    figure = conditions(tables)
    for ax, (site, rows) in zip(figure.axes, of_all_layers(tables), strict=True):
        (line,) = (a for a in read.artists(figure, f"curve {LORA}") if a.axes is ax)
        at = np.interp(np.log(RANKS), np.log(line.get_xdata()), np.log(line.get_ydata()))
        (predicted,) = rows.loc[rows["scaling"] == "lora", "predicted"]
        assert slope(np.exp(at), RANKS) == pytest.approx(predicted, abs=1e-6), site


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
