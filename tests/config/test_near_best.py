"""Rates around the expected best one of each cell."""

import math

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from study.config.compose import expected_best

MOVE, R_SIGN, CROSSOVER, STEPS = 85.0, 9.8, 10.0, 128


@pytest.mark.parametrize(("gamma", "rank"), [(1e-12, 2), (1.0, 64), (1e12, 9)])
def test_the_expected_best_rate_moves_the_output_by_move(gamma: float, rank: int) -> None:
    x = STEPS * expected_best(gamma, rank, STEPS, MOVE, R_SIGN, CROSSOVER)
    moved = x * gamma * math.sqrt(rank * (rank + R_SIGN - 1)) * (1 + CROSSOVER * x)
    assert moved == pytest.approx(MOVE, rel=1e-12)


def config(scaling: object, exponent: object, **keys: str) -> DictConfig:
    adapter = {"rank": 64, "alpha": 4, "scaling": scaling, "exponent": exponent}
    return OmegaConf.create({"adapter": adapter, "train": {"steps": STEPS}, **keys})


@pytest.mark.parametrize(
    ("scaling", "exponent", "p"), [("lora", None, 1), ("power", 0.5, 0.5), (0, None, 0)]
)
def test_a_rate_is_near_that_of_its_own_cell(scaling: object, exponent: object, p: float) -> None:
    rate = config(scaling, exponent, lr="${near_best:-2,85,9.8,10}").lr
    best = expected_best(4 * 64**-p, 64, STEPS, MOVE, R_SIGN, CROSSOVER)
    assert rate == pytest.approx(best / 4, rel=5e-3)
    assert rate == float(f"{rate:.2e}")


def test_a_move_of_zero_is_refused() -> None:
    with pytest.raises(OmegaConfBaseException, match="positive, finite move, not 0"):
        _ = config("lora", None, lr="${near_best:0,0,9.8,10}").lr
