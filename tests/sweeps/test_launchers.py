"""Packs for the devices of a launcher, the launchers of ``conf/launcher``, and names of cells."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from study.config.compose import CONF
from study.store import load_measured
from study.sweeps.app import parallel_jobs
from study.sweeps.cells import plan
from study.sweeps.packs import packs


def ranks(groups):
    return [[each.config.adapter.rank for each in pack] for pack in groups]


def test_auto_deals_as_many_packs_as_devices_by_cost(cell):
    cells = plan(
        cell("pack.max_cells=auto", f"adapter.rank={rank}", f"seed={n}")
        for rank in (4096, 8, 2)
        for n in (0, 1)
    )
    assert ranks(packs(cells, 3)) == [[4096], [4096], [2, 2, 8, 8]]
    assert len(packs(cells, 1)) == 1
    assert len(packs(cells, 100)) == 6, "no pack is empty"


def test_packs_share_what_they_must(cell):
    configs = [
        cell(f"adapter.rank={r}", f"seed={s}", f"optimizer={o}")
        for r in (8, 2)
        for s in (0, 1)
        for o in ("sgd", "adamw")
    ]
    odd = [cell("train.steps=4"), cell("precision=bf16"), cell("adapter.targets=mlp")]
    groups = packs(plan([*configs, *odd]))
    assert sorted(len(group) for group in groups) == [1, 1, 1, 8]
    assert ranks([max(groups, key=len)]) == [[2] * 4 + [8] * 4]
    capped = plan(cell(f"adapter.rank={r}", "pack.max_cells=2") for r in (16, 4, 8, 2))
    assert ranks(packs(capped)) == [[2, 16], [4, 8]], "each pack gets low and high ranks"


def test_the_launcher_gpus_has_a_process_per_visible_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["launcher=gpus"], return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith("JoblibLauncher")
    assert config.pack.max_cells == "auto"
    assert parallel_jobs(config.hydra.launcher) == 3


def test_a_sweep_with_the_launcher_gpus_has_the_same_numbers(works, jsonl, here):
    small = ("model=tiny", "data=file", f"data.path={jsonl}", "data.heldout=2", "train.steps=1")
    line = ("train", "-m", *small, "adapter.rank=2,3")
    works(*line, "results_dir=here")
    ran = works(*line, "launcher=gpus", "device=cpu", "pack.devices=2")
    assert "2 cells, 0 done, 2 to train in 2 packs" in ran.err
    one, two = (load_measured(f"{folder}/default") for folder in ("here", "results"))
    assert list(one.cells["cell_id"]) == list(two.cells["cell_id"])
    losses = list(one.metrics["loss"])
    assert losses == pytest.approx(list(two.metrics["loss"]), nan_ok=True, rel=1e-5)
