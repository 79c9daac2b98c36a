"""The name of a cell in lines of text says what sets it apart from the others."""

from collections.abc import Callable

from study.config import CellConfig
from study.sweeps.cells import plan

OfCell = Callable[..., CellConfig]


def labels(cell: OfCell, *each: tuple[str, ...]) -> list[str]:
    return [planned.label for planned in plan([cell(*overrides) for overrides in each])]


def test_learning_rates_have_labels_of_their_own(cell: OfCell) -> None:
    rates = [f"{3.0**-n:.4g}" for n in range(7)]
    found = labels(cell, *((f"optimizer.lr={rate}",) for rate in rates))
    assert found == [f"adamw lora rank 8 seed 0 lr {float(rate)}" for rate in rates]


def test_constant_keys_are_not_named(cell: OfCell) -> None:
    ranks = labels(cell, ("adapter.rank=4", "seed=0"), ("adapter.rank=8", "seed=1"))
    assert ranks == ["adamw lora rank 4 seed 0", "adamw lora rank 8 seed 1"]


def test_every_key_that_varies_is_named(cell: OfCell) -> None:
    exponents = [
        ("adapter.scaling=power", f"adapter.exponent={p}", f"train.clip={clip}")
        for p, clip in ((0.5, 1.0), (0.75, 2.0))
    ]
    assert labels(cell, *exponents) == [
        "adamw power p=0.5 rank 8 seed 0 clip 1.0",
        "adamw power p=0.75 rank 8 seed 0 clip 2.0",
    ]


def test_the_exponent_is_part_of_the_rule(cell: OfCell) -> None:
    rules = labels(cell, *((f"adapter.scaling={rule}",) for rule in ("lora", "rslora", "0.75")))
    assert rules == [f"adamw {rule} rank 8 seed 0" for rule in ("lora", "rslora", "power p=0.75")]


def test_the_name_of_a_run_has_alpha_and_the_learning_rate(cell: OfCell) -> None:
    """A job of a launcher plans its own cells, and does not know what varies between jobs."""
    [alone] = plan([cell("adapter.scaling=0.75", "optimizer.lr=1e-3", "adapter.alpha=8")])
    assert alone.run_name == "adamw power p=0.75 rank 8 seed 0 lr 0.001 alpha 8.0"
    [one, _] = plan([cell("train.clip=1", "optimizer.lr=0.1"), cell("train.clip=2")])
    assert one.run_name == "adamw lora rank 8 seed 0 lr 0.1 alpha 16.0 clip 1.0"
