"""A cell that resumes follows the same path: bit for bit in the same fold."""

import pandas as pd
import pytest
import torch

from study.models import load_base
from study.store.checkpoints import load_newest, save
from study.training.loop import train
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import STATS
from tests.trained import copied


def with_snapshots(base, corpus, cells):
    """All steps of a fold, and the state of every cell after each of them but the last."""
    steps, snapshots = [], []
    for rows in train(base, corpus, cells):
        steps.append(rows)
        if len(steps) <= cells[0].train.steps:
            snapshots.append([copied(row.snapshot()) for row in rows if row])
    return steps, snapshots


def assert_same(ours, theirs):
    """The same numbers bit for bit, in every table, and the same adapters."""
    for of_step in zip(ours, theirs, strict=True):
        for a, b in zip(*of_step, strict=True):
            assert_same_step(a, b)


def assert_same_step(a, b):
    assert a.diverged == b.diverged
    tables = [{"metrics": pd.DataFrame([s.metrics]).drop(columns="seconds")} for s in (a, b)]
    for table, step in zip(tables, (a, b), strict=True):
        table |= {"probes": step.probes, **step.tables}
    for name, table in tables[0].items():
        assert (table is None) == (tables[1][name] is None)
        if table is not None:
            pd.testing.assert_frame_equal(table, tables[1][name], check_exact=True)
    assert (a.adapter is None) == (b.adapter is None)
    for layer, pair in (a.adapter or {}).items():
        assert torch.equal(pair.A_RD, b.adapter[layer].A_RD)
        assert torch.equal(pair.B_OR, b.adapter[layer].B_OR)


def assert_resumes(base, corpus, cells, folder, after):
    """Resume from files after the given steps, and compare with the run that was not disturbed,
    which is returned."""
    steps, snapshots = with_snapshots(base, corpus, cells)
    for at in after:
        loaded = []
        for number, snapshot in enumerate(snapshots[at]):
            place = folder / f"{at}-{number}"
            place.mkdir()
            save(place, snapshot)
            loaded.append(load_newest(place))
            assert loaded[-1].step == at + 1
        assert_same(list(train(base, corpus, cells, loaded)), steps[at + 1 :])
    return steps


ALL_OF_IT = (
    *("train.steps=4", "train.save_adapter=true", "train.eval_every=2", "probes.truncations=[1]"),
    *("train.schedule=cosine", "train.warmup=2", "train.clip=0.5", "optimizer.loraplus_lr_ratio=4"),
)

EVERY_STAT = f"probes.stats=[{','.join(STATS)}]"


def test_every_optimizer(tiny_base, corpus, cell, tmp_path):
    """In one fold."""
    cells = [cell(*ALL_OF_IT, f"optimizer={name}", "probes.steps=[4]") for name in OPTIMIZERS]
    assert_resumes(tiny_base, corpus, cells, tmp_path, after=[1])


def test_every_step_with_every_probe(tiny_base, corpus, cell, tmp_path):
    """Alignments are measured at steps 1 to 3, from gradients that all steps before have added."""
    probes = ("probes.steps=[0,1,2,3,5]", EVERY_STAT, "probes.batch=all")
    config = cell(*ALL_OF_IT, "train.steps=5", *probes)
    steps = assert_resumes(tiny_base, corpus, [config], tmp_path, after=[1, 3])
    measured = pd.concat(row.probes for [row] in steps[1:4])
    assert measured["r_align"].notna().any()


SETTINGS = {
    "dropout": ["adapter.dropout=0.3"],
    "accumulation": ["train.accumulation=2", "train.schedule=linear"],
    "bf16": ["precision=bf16"],
    "8 bits": ["model.quant_bits=8"],
    "merged": ["adapter.contraction=merged"],
    "infinite rank": ["adapter.rank=inf", "adapter.scaling=rslora", "optimizer=momentum"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(corpus, cell, setting, tmp_path):
    common = ("train.steps=3", "probes.steps=[1,2,3]", "optimizer.weight_decay=0.1")
    config = cell(*common, *SETTINGS[setting])
    base = load_base(config.model, torch.device("cpu"), config.precision)
    assert_resumes(base, corpus, [config], tmp_path, after=[0, 1])


def test_cells_resume_in_any_packing(tiny_base, corpus, cell):
    """Alone, and with a cell that was checkpointed in another fold. They differ in everything in
    which the cells of a fold may differ."""
    probes = ["train.steps=4", "probes.steps=[1,3]", EVERY_STAT]
    own = (
        ["adapter.rank=2", "seed=1", "train.clip=0.1"],
        ["adapter.rank=4", "adapter.scaling=rslora", "train.schedule=cosine", "train.warmup=1"],
        ["adapter.rank=4", "optimizer=momentum", "optimizer.lr=0.1", "seed=2"],
        ["adapter.rank=9", "adapter.dropout=0.2", "optimizer=adafactor"],
    )
    mixed = [cell(*probes, *overrides) for overrides in own]
    steps, four = with_snapshots(tiny_base, corpus, mixed)
    [_, alone], [_, pair] = (
        with_snapshots(tiny_base, corpus, cells)[1][:2] for cells in (mixed[:1], mixed[1:3])
    )
    for chosen, resume in (
        ([2], four[1][2:3]),
        ([3], four[1][3:]),
        ([0, 1, 2, 3], [alone[0], *pair, four[1][3]]),
        ([1, 3], [pair[0], four[1][3]]),
    ):
        found = list(train(tiny_base, corpus, [mixed[k] for k in chosen], resume))
        assert len(found) == 3
        for ours, theirs in zip(found, steps[2:], strict=True):
            for row, k in zip(ours, chosen, strict=True):
                assert_close(row, theirs[k])


def assert_close(ours, theirs):
    """The same within rounding, as a folded cell and the cell alone."""
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name in ours.metrics.keys() - {"seconds"}:
        assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-3), name
    assert (ours.probes is None) == (theirs.probes is None)
    if ours.probes is not None:
        for name in ("rms", "r_align"):
            assert list(ours.probes[name]) == pytest.approx(
                list(theirs.probes[name]), rel=1e-2, abs=1e-6, nan_ok=True
            )
