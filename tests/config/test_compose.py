"""Many cells are composed as Hydra composes each; rates around the expected best one of a cell."""

import math
import re
from itertools import product

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from study.config.compose import CONF, compose, expected_best, parse

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def loader():
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def assert_same(loader, shared, cells):
    found = compose(loader, "config", shared, cells)
    for cell, config in zip(cells, found, strict=True):
        alone = loader.load_configuration("config", [*shared, *cell], run_mode=RunMode.RUN)
        alone = OmegaConf.masked_copy(alone, [key for key in alone if key != "hydra"])
        assert repr(config) == repr(parse(alone)), cell


def swept(experiment):
    """By key, the overrides that an experiment sweeps over: commas outside of interpolations."""
    comma = re.compile(r",\s*(?![^{]*\})")
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    sweep = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    return [[f"{key}={one}" for one in comma.split(str(values))] for key, values in sweep.items()]


@pytest.mark.parametrize("experiment", EXPERIMENTS[::6])
def test_the_cells_of_an_experiment_are_those_of_hydra(loader, experiment):
    cells = [list(cell) for cell in product(*swept(experiment))]
    assert_same(loader, [f"experiment={experiment}"], cells[:: max(1, len(cells) // 2)])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_value_that_an_experiment_sweeps_is_valid(loader, experiment):
    axes = swept(experiment)
    most = max(map(len, axes))
    cells = [[axis[number % len(axis)] for axis in axes] for number in range(most)]
    assert len(compose(loader, "config", [f"experiment={experiment}"], cells)) == most


def test_cells_may_set_different_keys_and_a_key_twice(loader):
    cells = [["adapter.rank=4", "seed=1"], [], ["adapter.rank=2", "adapter.rank=32"], ["seed=5"]]
    assert_same(loader, ["model=tiny"], cells)


MOVE, R_SIGN, CROSSOVER, STEPS = 85.0, 9.8, 10.0, 128


@pytest.mark.parametrize(("gamma", "rank"), [(1e-12, 2), (1.0, 64), (1e12, 9)])
def test_the_expected_best_rate_moves_the_output_by_move(gamma, rank):
    x = STEPS * expected_best(gamma, rank, STEPS, MOVE, R_SIGN, CROSSOVER)
    moved = x * gamma * math.sqrt(rank * (rank + R_SIGN - 1)) * (1 + CROSSOVER * x)
    assert moved == pytest.approx(MOVE, rel=1e-12)
