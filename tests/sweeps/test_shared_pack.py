"""The cells of a pack pass through the base once at step 0. Their tables are those of cells that do
not share it, and a plan counts it once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from study.adapters import merged_rate
from study.config import CellConfig, ModelConfig
from study.models import FrozenBase, load_base
from study.store import load_measured
from study.sweeps import run
from study.sweeps.cells import Cell, plan
from study.sweeps.packs import packs
from study.sweeps.plan import planned_flops
from study.sweeps.prepare import prepare

PACK = (
    *("-m", "model=tiny", "data.sequence_length=32", "data.heldout=2", "train.batch_size=2"),
    *("train.steps=2", "probes.steps=[0]", "probes.stats=[rms,norm,descent]", "pack.fold=1"),
    *("adapter.rank=2,4", "adapter.scaling=lora,rslora", "optimizer=sgd,adamw", "seed=0,1"),
)
CELLS, SEEDS = 16, 2
# torch counts baddbmm and not its in-place form; a and b are shapes
IN_PLACE = {torch.ops.aten.baddbmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}


@pytest.fixture
def trained(
    study_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, int]]:
    """Trains a study of the given name: its tables, and its passes through the base."""
    passes: list[int] = []
    real = FrozenBase.hidden_states

    def counted(base: FrozenBase, input_ids_BT: Tensor) -> Tensor:
        passes.append(1)
        return real(base, input_ids_BT)

    monkeypatch.setattr(FrozenBase, "hidden_states", counted)
    load_base(ModelConfig("tiny"), torch.device("cpu"), "float32")
    loading = len(passes)
    monkeypatch.chdir(tmp_path)

    def train(name: str, *more: str) -> tuple[Any, int]:
        passes.clear()
        run.forget_base()  # so that each study loads it, which takes passes too
        ran = study_cli("train", *PACK, f"name={name}", *more)
        assert ran.code == 0, ran.err
        return load_measured(tmp_path / "results" / name), len(passes) - loading

    return train


def test_a_pack_passes_through_the_base_once_per_seed(
    trained: Callable[..., tuple[Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, passes = trained("shared")
    monkeypatch.setattr(run, "SPARE_SHARE", 2**60)  # no room for a pass
    alone, alone_passes = trained("alone")
    of_steps, losses_after, evaluations = 2 * CELLS, CELLS, 1 + CELLS
    assert alone_passes == of_steps + losses_after + evaluations
    # The start's held-out loss is a number, which is shared without room for a pass.
    assert alone_passes - passes == CELLS - SEEDS
    for name in ("metrics", "probes"):
        ours, theirs = (getattr(tables, name) for tables in (shared, alone))
        columns = [column for column in ours if column != "seconds"]
        by = [c for c in ("cell_id", "step", "batch", "layer", "site") if c in ours]
        ours, theirs = (t.sort_values(by, ignore_index=True)[columns] for t in (ours, theirs))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_a_plan_knows_what_the_cells_of_a_pack_share(
    cell: Callable[..., CellConfig], tmp_path: Path
) -> None:
    """The plan's saving against the FLOPs that torch counts, in a pack and in packs of one cell."""
    merged_rate(torch.device("cpu"))  # measured once a process, by products of its own
    planned, counted = {}, {}
    for size in ("null", "1"):
        cells = plan(
            [
                cell(
                    *("adapter.contraction=factored", "probes.steps=null", "train.steps=2"),
                    *("train.eval_every=2", f"pack.max_cells={size}", f"adapter.rank={rank}"),
                    *(f"seed={seed}", f"data.seed={seed}", f"results_dir={tmp_path / size}"),
                )
                for rank in (2, 4, 8)
                for seed in (0, 1)
            ]
        )
        made = packs(cells)
        planned[size] = sum(planned_flops(prepare(pack)) for pack in made)
        counted[size] = sum(map(products_of, made))
    assert planned["1"] == pytest.approx(counted["1"], rel=0.1)
    saved = planned["1"] - planned["null"]
    assert saved == pytest.approx(counted["1"] - counted["null"], rel=0.1)
    assert saved > 0.2 * planned["1"]


def products_of(pack: list[Cell]) -> float:
    """The FLOPs of all matrix products while a pack is trained, but for attention's own."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        run.run(pack)
    counts = counter.get_flop_counts()["Global"]
    return float(sum(n for op, n in counts.items() if "attention" not in str(op)))
