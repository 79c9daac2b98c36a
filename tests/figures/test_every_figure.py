"""All figures over all kinds of study: no crash, no overlap, nothing cut off."""

import logging
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D

from study.figures import FIGURES, draw_all
from study.vocabulary.scaling import RULES, Rule

PLAIN = (
    *(
        "loss_curves",
        "grad_norm_curves",
        "grad_norm_vs_rank",
        "activation_moments_vs_rank",
        "descent_vs_rank",
    ),
    *("exponents_over_training", "exponent_heatmap", "loss_against_rank"),
)
"""The figures that every synthetic study has data for. The others have tests of their own."""
UNFITTED = PLAIN[:5] + PLAIN[7:]
BOTH = [("lora", np.nan), ("rslora", np.nan)]
WIDE = tuple(4 * 2**k for k in range(10))
STUDIES = {
    "one rule": {"rules": BOTH[1:]},
    "one rank": {"ranks": (64,)},
    "one seed, two ranks": {"ranks": (4, 2048), "seeds": (0,)},
    "uneven ranks": {"ranks": (4, 5, 6, 7, 8, 16, 1000, 1024)},
    "ten ranks, power too": {"ranks": WIDE, "rules": [*BOTH, ("power", 0.75)]},
    "five exponents": {"rules": [("power", p) for p in (0, 0.25, 0.5, 0.75, 1)]},
    "infinite rank": {"ranks": (4, 64, 1024, np.inf)},
    "long, log-spaced probes": {"steps": 300, "probed": (0, 1, 2, 4, 8, 16, 32, 64, 128, 300)},
    "diverged": {
        "steps": 20,
        "status": lambda c: "diverged" if c["rank"] > 4 and c["seed"] else "complete",
    },
    "all diverged": {"steps": 20, "status": lambda c: "diverged"},
    "still running": {"steps": 20, "status": lambda c: "running"},
    "optimizers and rates": {
        "settings": [{"optimizer": o, "lr": lr} for o in ("adamw", "sgd") for lr in (1e-4, 0.1)]
    },
    "long labels": {
        "settings": [
            {
                "optimizer": "adamw",
                "model": "meta-llama/Llama-3.1-8B-Instruct",
                "targets": "q_proj,v_proj",
                "lr": 0.1,
            },
            {"optimizer": "sgd", "model": "smollm2", "targets": "all-linear", "lr": 0.12345},
        ]
    },
    "bits": {"settings": [{"quant_bits": bits} for bits in (np.nan, 8.0, 4.0)]},
    "not analysed": {"fitted": False},
}


@pytest.mark.parametrize("kind", STUDIES)
def test_nothing_collides_in_unusual_studies(kind: str, tiny, read) -> None:
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # a missing glyph, a layout that collapsed, the logarithm of zero
        for name, figure in draw_all(tiny(**STUDIES[kind])):
            assert read.problems(figure) == [], name
            drawn.append(name)
    expected = {"one rank": PLAIN[:2], "not analysed": UNFITTED}.get(kind, PLAIN)
    if kind in ("all diverged", "still running"):  # no run has a final loss
        expected = PLAIN[:7]
    assert set(expected) <= set(drawn)
    assert set(drawn) - set(PLAIN) <= {
        "exponent_against_p",
        "learning_rate_basins",
        "exponents_by_bits",
    }
    assert drawn == [name for name in FIGURES if name in drawn]


def test_a_new_rule_is_drawn_without_a_look_of_its_own(
    tiny, read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "cube", Rule("Cube", 1 / 3))
    tables = tiny(rules=[("lora", np.nan), ("cube", np.nan)])
    for name, figure in draw_all(tables):
        assert read.problems(figure) == [], name
        assert "Cube" in " ".join(read.texts(figure)), name


@pytest.mark.parametrize("name", PLAIN)
def test_every_axis_is_labelled(name: str, small, read) -> None:
    figure = FIGURES[name](small)
    panels = [ax for ax in figure.axes if ax.get_label() != "legend"]
    for ax in panels:
        place = ax.get_subplotspec()
        assert bool(ax.get_xlabel()) == place.is_last_row()
        assert bool(ax.get_ylabel()) == place.is_first_col()


def test_tables_as_they_come_back_from_disk(tiny, read, tmp_path) -> None:
    tables = tiny()
    for name, frame in vars(tables).items():
        frame.astype({"cell_id": "category"} if "cell_id" in frame else {}).to_parquet(
            tmp_path / name, index=False
        )
    back = SimpleNamespace(**{name: pd.read_parquet(tmp_path / name) for name in vars(tables)})
    back.cells["cell_id"] = back.cells["cell_id"].astype(str)
    assert isinstance(back.metrics["cell_id"].dtype, pd.CategoricalDtype)
    for (name, figure), (_, again) in zip(draw_all(tables), draw_all(back), strict=True):
        assert read.texts(figure) == read.texts(again), name
        for one, other in zip(read.artists(figure, ""), read.artists(again, ""), strict=True):
            if isinstance(one, Line2D):
                np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())


def test_tables_are_left_as_they_were(tiny) -> None:
    tables = tiny()
    before = {name: frame.copy() for name, frame in vars(tables).items()}
    assert len(list(draw_all(tables))) >= len(PLAIN)
    assert all(frame.equals(getattr(tables, name)) for name, frame in before.items())


def test_a_figure_without_data_is_skipped_with_a_warning(
    tiny, caplog: pytest.LogCaptureFixture
) -> None:
    tables = tiny()
    tables.probes = tables.probes.iloc[:0]
    with caplog.at_level(logging.WARNING):
        drawn = [name for name, _ in draw_all(tables)]
    from_other_tables = {"exponent_against_p", "exponents_over_training", "loss_against_rank"}
    assert [name for name in drawn if name not in from_other_tables] == [
        "loss_curves",
        "grad_norm_curves",
    ]
    assert (
        "no figure descent_vs_rank: no model-wide adapter_update descent in the tables"
        in caplog.messages
    )
    nothing = SimpleNamespace(**{name: frame.iloc[:0] for name, frame in vars(tables).items()})
    assert list(draw_all(nothing)) == []


# the checker itself
