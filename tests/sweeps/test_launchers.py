"""Packs for the devices of a launcher, the launchers of ``conf/launcher``, and names of cells."""

from dataclasses import replace

import pytest
import torch

from study.store import load_measured
from study.sweeps.cells import plan
from study.sweeps.packs import packs


def ranks(groups):
    return [[each.config.adapter.rank for each in pack] for pack in groups]


def test_auto_deals_as_many_packs_as_devices_by_cost(cell):
    cells = plan(
        replace(cell("pack.max_cells=auto", f"adapter.rank={rank}"), seed=n)
        for rank in (4096, 8, 2)
        for n in (0, 1)
    )
    assert ranks(packs(cells, 3)) == [[4096], [4096], [2, 2, 8, 8]]
    assert len(packs(cells, 1)) == 1
    assert len(packs(cells, 100)) == 6, "no pack is empty"


def test_packs_share_what_they_must(cell):
    configs = [
        replace(cell(f"adapter.rank={r}", f"optimizer={o}"), seed=s)
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


def test_the_launcher_gpus_has_a_process_per_visible_gpu(works, short, here, monkeypatch):
    """The numbers are those of one process."""
    line = ("train", "-m", *short, "adapter.rank=2,3")
    says = "2 cells, 0 done, 2 to train in 2 packs"
    assert says in works(*line, "results_dir=here", "pack.max_cells=auto", "pack.devices=2").err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert says in works(*line, "launcher=gpus", "device=cpu").err
    one, two = (load_measured(f"{folder}/default") for folder in ("here", "results"))
    assert list(one.cells["cell_id"]) == list(two.cells["cell_id"])
    losses = list(one.metrics["loss"])
    assert losses == pytest.approx(list(two.metrics["loss"]), nan_ok=True, rel=1e-5)
