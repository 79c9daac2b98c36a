"""Families: which cells a figure shows together, and their labels."""

import numpy as np
import pandas as pd

from study.figures.selection import Rule, families, most_varied, per_step


def cells(**columns: object) -> pd.DataFrame:
    rows = max(len(c) for c in columns.values() if isinstance(c, list))
    base = {
        "scaling": "lora",
        "exponent": np.nan,
        "rank": 4.0,
        "seed": 0,
        "optimizer": "adamw",
        "lr": 1e-4,
    }
    frame = pd.DataFrame(
        {
            name: [value] * rows if not isinstance(value, list) else value
            for name, value in {**base, **columns}.items()
        }
    )
    return frame.assign(cell_id=[f"c{k}" for k in range(rows)])


def test_ranks_rules_and_seeds_make_one_family() -> None:
    (family,) = families(
        cells(
            rank=[4.0, 8.0, np.inf],
            seed=[0, 1, 2],
            scaling=["lora", "power", "rslora"],
            exponent=[np.nan, 0.75, np.nan],
        )
    )
    assert family.label == ""
    assert family.rules == [Rule.of("lora", None), Rule.of("rslora", None), Rule.of("power", 0.75)]
    assert family.ranks == [4.0, 8.0, np.inf]
    assert family.finite_ranks == [4.0, 8.0]


def test_outcome_and_device_make_no_family() -> None:
    table = cells(
        status=["complete", "diverged"],
        seconds=[1.0, 2.0],
        device=["cpu", "cuda"],
        gamma=[1.0, 2.0],
    )
    assert len(families(table)) == 1


def test_labels_name_what_differs_and_nothing_else() -> None:
    labels = [f.label for f in families(cells(lr=[1e-4, 1e-3], model=["smollm2", "smollm2"]))]
    assert labels == ["learning rate 0.0001", "learning rate 0.001"]
    table = cells(
        optimizer=["adamw", "adamw", "sgd"],
        alpha=[16.0, 8.0, 8.0],
        clip=[None, 1.0, 1.0],
        sequence_length=[48, 96, 96],
        eps=[1e-8, 1e-8, None],
    )
    assert {f.label for f in families(table)} == {
        "AdamW, α = 16, no clip, sequence length 48",
        "AdamW, α = 8, clip 1, sequence length 96",
        "SGD, α = 8, clip 1, sequence length 96",
    }


def test_too_many_families_leave_every_optimizer_one() -> None:
    table = cells(optimizer=["adamw"] * 5 + ["sgd"], lr=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    kept, said = most_varied(families(table), 3)
    assert [f.keys["optimizer"] for f in kept] == ["adamw", "adamw", "sgd"]
    assert said == "3 of 6 settings are drawn."
    everything, nothing = most_varied(families(table), 6)
    assert len(everything) == 6
    assert nothing == ""


def test_rows_after_a_divergence_are_dropped() -> None:
    table = cells(rank=[4.0, 8.0], diverged_step=[2.0, np.nan], status=["diverged", "complete"])
    metrics = pd.DataFrame(
        {
            "cell_id": ["c0"] * 4 + ["c1"] * 4,
            "step": [0, 1, 2, 3] * 2,
            "loss": [1.0, 2.0, 9.0, 9.0] * 2,
        }
    )
    series = per_step(table, metrics, "loss")
    assert list(series.query("cell_id == 'c0'")["step"]) == [0, 1, 2]
    assert list(series.query("cell_id == 'c1'")["step"]) == [0, 1, 2, 3]
    assert per_step(table, metrics, "absent").empty
