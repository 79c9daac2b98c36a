"""Packs for the devices of a launcher, and the launchers of ``conf/launcher``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st

from study.config import CellConfig
from study.config.compose import CONF
from study.store import load_cells
from study.sweeps.app import parallel_jobs
from study.sweeps.cells import plan
from study.sweeps.estimate import full_estimate
from study.sweeps.packs import deal, packs

Build = Callable[..., CellConfig]
COSTS = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12)


@given(COSTS, st.integers(1, 6))
def test_costs_are_dealt_evenly(costs: list[float], hands: int) -> None:
    dealt = deal(costs, hands)
    assert sorted(place for hand in dealt for place in hand) == list(range(len(costs)))
    assert len(dealt) == min(hands, len(costs))
    sums = [sum(costs[place] for place in hand) for hand in dealt]
    assert sums == sorted(sums, reverse=True) or sums == pytest.approx(sorted(sums, reverse=True))
    # No hand can be emptied by one cost and still exceed the least of the others.
    assert all(
        total - min(costs[place] for place in hand) <= min(sums) * (1 + 1e-9)
        for total, hand in zip(sums, dealt, strict=True)
    )


def test_auto_deals_as_many_packs_as_devices_by_cost(cell: Build, tmp_path: Path) -> None:
    cells = plan(
        cell(f"results_dir={tmp_path}", "pack.max_cells=auto", f"adapter.rank={rank}", f"seed={n}")
        for rank in (4096, 8, 2)
        for n in (0, 1)
    )
    cost = {c.config.adapter.rank: full_estimate(c.config, c.card).flops for c in cells}
    assert cost[4096] > 2 * (cost[8] + cost[2]), "else another deal is as good"
    dealt = [[c.config.adapter.rank for c in pack] for pack in packs(cells, 3)]
    assert dealt == [[4096], [4096], [2, 2, 8, 8]]
    assert len(packs(cells, 1)) == 1
    assert len(packs(cells, 100)) == 6, "no pack is empty"


def test_groups_share_the_devices_by_cost_and_the_longest_pack_is_first(
    cell: Build, tmp_path: Path
) -> None:
    cells = plan(
        cell(f"results_dir={tmp_path}", "pack.max_cells=auto", f"train.steps={s}", f"seed={n}")
        for s in (10, 50)
        for n in range(3)
    )
    steps = [[c.config.train.steps for c in pack] for pack in packs(cells, 4)]
    assert steps == [[50], [50], [50], [10, 10, 10]]


@pytest.mark.parametrize(
    ("launcher", "jobs"),
    [
        ({}, 1),
        ({"n_jobs": 4}, 4),
        ({"n_jobs": -1}, os.cpu_count()),
        ({"array_parallelism": 512, "gpus_per_node": 1}, 512),
        ({"n_jobs": None}, 1),
    ],
)
def test_the_settings_of_a_launcher_say_how_many_jobs_it_runs(
    launcher: dict[str, Any], jobs: int
) -> None:
    assert parallel_jobs(launcher) == jobs


def test_the_launcher_gpus_has_a_process_per_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["launcher=gpus"], return_hydra_config=True)
    assert config.hydra.launcher.n_jobs == 3
    assert config.hydra.launcher._target_.endswith("JoblibLauncher")
    assert config.pack.max_cells == "auto"
    assert parallel_jobs(config.hydra.launcher) == 3


def test_a_sweep_with_the_launcher_gpus(
    study_cli: Callable[..., Any], jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("model=tiny", "data=file", f"data.path={jsonl}", "data.heldout=2", "train.steps=1")
    line = ("train", "-m", *small, "adapter.rank=2,3", "launcher=gpus", "device=cpu")
    ran = study_cli(*line, "pack.devices=2")
    assert ran.code == 0, ran.err
    assert "2 cells, 0 done, 2 to train in 2 packs" in ran.err
    assert set(load_cells(tmp_path / "results/default")["status"]) == {"complete"}
