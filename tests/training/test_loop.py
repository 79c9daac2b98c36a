"""The loop: a folded cell equals the cell alone, and a diverged one disturbs no other.

Micro-batches equal one batch, and the base never changes.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch.nn.functional import cross_entropy

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.training.loop import CellStep, train
from study.training.run import Run

Build = Callable[..., CellConfig]


def run(base: FrozenBase, corpus: Corpus, cells: Sequence[CellConfig]) -> list[list[CellStep]]:
    """Each cell's steps."""
    by_step = list(train(base, corpus, [Run.of(config, corpus, base.device) for config in cells]))
    return [
        [results[k] for results in by_step if results[k] is not None] for k in range(len(cells))
    ]


def series(steps: Sequence[CellStep], name: str) -> list[float]:
    return [step.metrics.get(name, math.nan) for step in steps]


@pytest.fixture
def mixed(cell: Build) -> list[CellConfig]:
    """Cells that differ in everything in which the cells of a fold may differ."""
    return [
        cell("adapter.rank=2", "seed=1", "train.clip=0.1"),
        cell("adapter.rank=4", "adapter.scaling=rslora", "train.schedule=cosine", "train.warmup=1"),
        cell(
            "adapter.rank=4",
            "optimizer=sgd",
            "optimizer.lr=0.1",
            "optimizer.momentum=0.9",
            "seed=2",
        ),
        cell(
            "adapter.rank=9", "adapter.scaling=power", "adapter.exponent=0.3", "adapter.dropout=0.2"
        ),
    ]


def test_folded_is_solo(tiny_base: FrozenBase, corpus: Corpus, mixed: list[CellConfig]) -> None:
    together = run(tiny_base, corpus, mixed)
    for config, folded in zip(mixed, together, strict=True):
        [alone] = run(tiny_base, corpus, [config])
        for name in ("loss", "eval_loss", "grad_norm", "lr", "clip_factor", "tokens"):
            assert series(folded, name) == pytest.approx(
                series(alone, name), rel=1e-4, nan_ok=True
            ), name
        assert [s.probes is None for s in folded] == [s.probes is None for s in alone]
        for ours, theirs in zip(folded, alone, strict=True):
            if ours.probes is not None:
                keys = ["layer", "site"]
                merged = ours.probes.merge(theirs.probes, on=keys, validate="1:1")
                assert len(merged) == len(theirs.probes)
                big = merged["norm_y"] > 1e-6
                assert (merged["norm_x"] / merged["norm_y"])[big].sub(1).abs().max() < 1e-2


def test_a_cell_that_diverges_disturbs_no_other(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    steady = [cell("adapter.rank=2"), cell("adapter.rank=8")]
    wild = cell("adapter.rank=4", "optimizer=sgd", "optimizer.lr=1e30")
    first, diverging, second = run(tiny_base, corpus, [steady[0], wild, steady[1]])
    assert diverging[-1].diverged
    assert not any(step.diverged for step in diverging[:-1])
    assert len(diverging) < len(first)
    last = diverging[-1].metrics
    assert not (math.isfinite(last["loss"]) and math.isfinite(last["grad_norm"])), (
        "non-finite values are kept as such"
    )
    for config, steps in zip(steady, (first, second), strict=True):
        [alone] = run(tiny_base, corpus, [config])
        assert series(steps, "loss") == pytest.approx(series(alone, "loss"), rel=1e-4, nan_ok=True)
        assert not any(step.diverged for step in steps)


def test_micro_batches_are_one_batch(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    """A batch of 6 and 3 batches of 2: the mean is over all tokens of the step."""
    whole = cell("train.batch_size=6", "probes.tokens=1000")
    parts = cell("train.batch_size=2", "train.accumulation=3", "probes.tokens=1000")
    [one], [many] = run(tiny_base, corpus, [whole]), run(tiny_base, corpus, [parts])
    for name in ("loss", "grad_norm", "tokens"):
        assert series(many, name) == pytest.approx(series(one, name), rel=1e-4), name
    for a, b in zip(one, many, strict=True):
        if a.probes is not None:
            merged = a.probes.merge(b.probes, on=["layer", "site"], validate="1:1")
            big = merged["rms_x"] > 1e-6
            assert (merged["rms_x"] / merged["rms_y"])[big].sub(1).abs().max() < 1e-2


def test_loss_is_the_models_own_on_targets_alone(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    [steps] = run(tiny_base, corpus, [cell("train.steps=1")])
    batch = corpus.train.batch(0, 0, 3)
    with torch.no_grad():
        logits = tiny_base.model(input_ids=batch.input_ids_BT).logits
    assert steps[0].metrics["loss"] == pytest.approx(
        cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten()).item()
    )
    held = [
        (b, tiny_base.model(input_ids=b.input_ids_BT).logits) for b in corpus.heldout.batches(4)
    ]
    nll = sum(
        cross_entropy(x.flatten(0, 1), b.targets_BT.flatten(), reduction="sum").item()
        for b, x in held
    )
    assert steps[0].metrics["eval_loss"] == pytest.approx(
        nll / sum(b.supervised for b, _ in held), rel=1e-5
    )


def test_schedule_of_measurements(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    [steps] = run(
        tiny_base, corpus, [cell("train.steps=5", "train.eval_every=2", "probes.steps=[1,5,99]")]
    )
    assert [s.metrics["step"] for s in steps] == [0, 1, 2, 3, 4, 5]
    assert [s.metrics["step"] for s in steps if "eval_loss" in s.metrics] == [0, 2, 4, 5]
    assert [s.metrics["step"] for s in steps if s.probes is not None] == [1, 5]
    assert "adapter_update" in set(steps[1].probes["site"])
    assert "adapter_update" not in set(steps[5].probes["site"]), "the last step only measures"
    [plain] = run(tiny_base, corpus, [cell("train.steps=5", "probes.steps=null")])
    assert series(plain[:5], "loss") == series(steps[:5], "loss"), "probes change nothing"
    assert "loss" not in plain[5].metrics


def test_the_base_never_moves(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    before = {name: p.clone() for name, p in tiny_base.model.named_parameters()}
    run(tiny_base, corpus, [cell("optimizer.lr=1")])
    after = dict(tiny_base.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None and not p.requires_grad for p in after.values())


def test_clipping_is_recorded(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    [steps] = run(tiny_base, corpus, [cell("train.clip=0.01")])
    for step in steps[:-1]:
        assert step.metrics["grad_norm"] > 0.01
        assert step.metrics["clip_factor"] == pytest.approx(
            0.01 / step.metrics["grad_norm"], rel=1e-3
        )


def test_bf16_trains_close_to_float32(corpus: Corpus, cell: Build) -> None:
    from study.models import load_base

    config = cell("precision=bf16")
    base = load_base(config.model, torch.device("cpu"), "bf16")
    [half] = run(base, corpus, [config])
    full_base = load_base(config.model, torch.device("cpu"), "float32")
    [full] = run(full_base, corpus, [cell()])
    assert series(half[:3], "loss") == pytest.approx(series(full[:3], "loss"), rel=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_follows_the_cpu(corpus: Corpus, cell: Build, mixed: list[CellConfig]) -> None:
    from study.models import load_base

    cells = [
        config for config in mixed if config.adapter.dropout == 0
    ]  # dropout draws from the device's own stream
    runs = [
        run(load_base(cells[0].model, torch.device(d), "float32"), corpus, cells)
        for d in ("cpu", "cuda")
    ]
    for cpu, cuda in zip(*runs, strict=True):
        assert series(cuda, "loss") == pytest.approx(series(cpu, "loss"), rel=1e-3, nan_ok=True)


def test_truncations_run_from_the_base_to_the_run_itself_and_move_nothing(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    """Kept 0 is the base, kept r the run; in a fold each cell has its own ranks."""
    asked = [
        cell(f"adapter.rank={rank}", "adapter.scaling=rslora", "probes.truncations=log")
        for rank in (3, 8)
    ]
    plain = [cell(f"adapter.rank={rank}", "adapter.scaling=rslora") for rank in (3, 8)]
    cut, uncut = run(tiny_base, corpus, asked), run(tiny_base, corpus, plain)
    for kept, ours, theirs in zip(([0, 1, 2, 3], [0, 1, 2, 4, 8]), cut, uncut, strict=True):
        assert series(ours, "loss") == series(theirs, "loss")
        assert all(step.truncations is None for step in [*ours[:-1], *theirs])
        table = ours[-1].truncations
        assert list(table["kept"]) == kept
        evaluated = series(ours, "eval_loss")
        assert [table["loss"].iloc[0], table["loss"].iloc[-1]] == pytest.approx(
            [evaluated[0], evaluated[-1]], rel=1e-5
        )
        assert table["share"].iloc[0] == 0
        assert table["share"].iloc[-1] == pytest.approx(1)
        assert table["share"].is_monotonic_increasing
    [infinite] = run(
        tiny_base,
        corpus,
        [
            cell(
                "adapter.rank=inf",
                "adapter.scaling=rslora",
                "optimizer=sgd",
                "probes.truncations=[2]",
            )
        ],
    )
    assert list(infinite[-1].truncations["kept"]) == [2, math.inf]
