"""The start that the cells of a pack share: their numbers are those of cells trained alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pandas as pd
import pytest
import torch

from study.adapters import AdapterSpec
from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase, load_base
from study.training import shared_start
from study.training.checkpoint import Snapshot
from study.training.loop import CellStep, train
from study.training.run import Run
from study.training.shared_start import SharedStart
from study.vocabulary.quantities import STATS

Build = Callable[..., CellConfig]
Steps = list[list[CellStep | None]]

DOWN = [f"model.layers.{block}.mlp.down_proj" for block in range(2)]
EVERY_PROBE = ("probes.batch=all", f"probes.stats=[{','.join(STATS)}]", "train.steps=1")
UNPROBED = ("probes.steps=null", "train.steps=1")


class Pack:
    """Folds that are trained one after another with a shared start, and each of them alone.

    ``passes``: through the base, of the pack and of the folds alone. ``replays``: of each fold.
    """

    def __init__(
        self,
        base: FrozenBase,
        corpus: Corpus,
        folds: Sequence[Sequence[CellConfig]],
        limit: int = 2**30,
    ) -> None:
        self.base, self.corpus = base, corpus
        self.shared = SharedStart([cell for fold in folds for cell in fold], limit)
        self.together: list[Steps] = []
        self.alone: list[Steps] = []
        self.replays: list[int] = []
        self.passes = [0, 0]
        for fold in folds:
            before = self.shared.replays
            self.together.append(self.train(fold, 0, self.shared))
            self.replays.append(self.shared.replays - before)
            self.alone.append(self.train(fold, 1))

    def train(
        self, fold: Sequence[CellConfig], place: int, shared: SharedStart | None = None
    ) -> Steps:
        runs = [Run.of(config, self.corpus, self.base.device) for config in fold]
        with counted(self.base) as passes:
            steps = list(train(self.base, self.corpus, runs, shared=shared))
        self.passes[place] += len(passes)
        return steps

    def assert_equal(self, rtol: float = 0.0) -> None:
        """The same tables and the same state, bit for bit by default."""
        for ours, theirs in zip(self.together, self.alone, strict=True):
            assert_same(ours, theirs, rtol)


class counted:
    """Counts the passes through a base."""

    def __init__(self, base: FrozenBase) -> None:
        self.trunk, self.passes = base.trunk, list[object]()

    def __enter__(self) -> list[object]:
        self.hook = self.trunk.register_forward_hook(lambda *_: self.passes.append(1))
        return self.passes

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def rows(steps: Steps) -> Iterator[CellStep]:
    yield from (row for of_step in steps for row in of_step if row is not None)


def assert_same(ours: Steps, theirs: Steps, rtol: float) -> None:
    assert [[row is None for row in step] for step in ours] == [
        [row is None for row in step] for step in theirs
    ]
    for one, other in zip(rows(ours), rows(theirs), strict=True):
        metrics = [pd.DataFrame([row.metrics]).drop(columns="seconds") for row in (one, other)]
        tables = [metrics] if one.probes is None else [metrics, [one.probes, other.probes]]
        for mine, its in tables:
            pd.testing.assert_frame_equal(mine, its, check_exact=not rtol, rtol=rtol, atol=1e-9)


def test_cells_that_differ_in_all_but_their_batches(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    """Ranks, rules, inits, optimizers, seeds, clipping and warm-up. With every site and stat, on
    every batch; alignments are measured at later steps from what step 0 accumulates.
    """
    form = "adapter.contraction=factored"
    differ = [
        ("adapter.rank=2",),
        ("adapter.rank=4", "adapter.scaling=rslora", "seed=3", "data.seed=0", "train.clip=0.1"),
        ("adapter.rank=4", "adapter.init=init_b", "optimizer=signsgd"),
        ("adapter.rank=8", "adapter.init=orthogonal", "optimizer=muon", "train.warmup=1"),
    ]
    cells = [[cell(*EVERY_PROBE, form, *each)] for each in differ]
    pack = Pack(tiny_base, corpus, cells)
    pack.assert_equal()
    # Of step 0: two batches of the held-out loss, the held-out probe, and the step's own.
    assert pack.replays == [0, 2, 2, 2]
    assert pack.passes[1] - pack.passes[0] == 3 * 4
    assert not pack.shared._passes, "the last cell leaves nothing in memory"


@pytest.mark.parametrize("room", [2**30, 2**18])
def test_the_weight_gradients_of_a_shared_pass(
    tiny_base: FrozenBase,
    corpus: Corpus,
    cell: Build,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are computed once if there is room for them, and by every cell otherwise."""
    computed: list[object] = []
    real = shared_start.weight_gradient
    monkeypatch.setattr(
        shared_start, "weight_gradient", lambda *each: computed.append(1) or real(*each)
    )
    few = ("train.steps=1", "train.eval_every=0", "data.sequence_length=16", "train.batch_size=1")
    probes = "probes.stats=[norm,r_align,r_back]"
    rates = (1e-3, 2e-3, 3e-3)
    cells = [[cell(*few, probes, "optimizer=sgd", f"optimizer.lr={rate}")] for rate in rates]
    pack = Pack(tiny_base, corpus, cells, room)
    pack.assert_equal()
    assert pack.replays == [0, 1, 1]
    layers = len(tiny_base.card.linears)
    assert len(computed) == (layers if room == 2**30 else 2 * layers)


@pytest.mark.parametrize("form", ["merged", "mixed"])
def test_other_forms_of_products(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build, form: str
) -> None:
    """They are shared among themselves: forms differ in rounding."""
    forms = (f"adapter.contraction={form}", "adapter.contraction=factored")
    few = ("train.steps=1", "train.eval_every=0", "probes.stats=[norm]")
    cells = [[cell(*few, forms[k % 2], f"adapter.rank={4 + k}")] for k in range(4)]
    pack = Pack(tiny_base, corpus, cells)
    pack.assert_equal()
    assert pack.replays == [0, 0, 1, 1]


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_micro_batches(tiny_base: FrozenBase, corpus: Corpus, cell: Build, form: str) -> None:
    """Merged products project the gradient of the weight once a step, and here once a micro-batch.
    So their bits differ.
    """
    parts = ("train.batch_size=2", "train.accumulation=3", f"adapter.contraction={form}")
    sites = "probes.sites=[adapter_in,layer_out,layer_out_grad]"
    cells = [
        [cell(*parts, "train.steps=1", sites, f"optimizer={name}")] for name in ("sgd", "lion")
    ]
    pack = Pack(tiny_base, corpus, cells)
    pack.assert_equal(0.0 if form == "factored" else 1e-6)
    assert pack.replays == [0, 3]
    # Three held-out batches too.
    assert pack.passes[1] - pack.passes[0] == 3 + 3


def test_folds_share_by_cell(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    """A fold is replayed if the start of each cell is known, from whichever folds."""
    seeds = ((2, 0), (4, 1)), ((2, 1), (4, 0), (4, 0)), ((4, 0), (8, 2))
    shared = ("train.steps=1", "probes.batch=[train,heldout]", "probes.stats=[rms,descent]")
    cells = [
        [cell(*shared, f"adapter.rank={rank}", f"seed={seed}") for rank, seed in fold]
        for fold in seeds
    ]
    pack = Pack(tiny_base, corpus, cells)
    pack.assert_equal(1e-6)
    # The held-out pass does not depend on the seed. Seed 2 is new to the third fold.
    assert pack.replays == [0, 2, 1]


def test_bf16(corpus: Corpus, cell: Build) -> None:
    cells = [
        [cell("precision=bf16", "train.steps=1", "probes.stats=all", f"adapter.rank={rank}")]
        for rank in (4, 8)
    ]
    pack = Pack(load_base(cells[0][0].model, torch.device("cpu"), "bf16"), corpus, cells)
    pack.assert_equal()
    assert pack.replays == [0, 1]


def test_a_start_that_is_not_the_base_is_not_shared(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    """Dropout, another order of the data, and a gamma that overflows: ``inf * 0`` is not 0."""
    others = (
        ("adapter.alpha=1e38", "adapter.scaling=rslora"),
        (),
        ("adapter.dropout=0.5",),
        ("data.seed=1",),
        ("optimizer=sgd",),
    )
    pack = Pack(tiny_base, corpus, [[cell(*UNPROBED, *each)] for each in others])
    pack.assert_equal()
    assert pack.replays == [0, 0, 0, 0, 1]
    losses = [next(rows(steps)).metrics["loss"] for steps in pack.together]
    assert losses[1] == losses[4] != losses[3]


def test_a_trained_adapter_is_not_shared(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    """Its product is not zero, though it begins at step 0 too."""
    first = cell(*UNPROBED, "train.save_adapter=true")
    [*_, last] = rows(list(train(tiny_base, corpus, [Run.of(first, corpus, tiny_base.device)])))
    assert last.adapter
    trained = replace(first, adapter=replace(first.adapter, path="somewhere"))
    spec = AdapterSpec(first.adapter.rank, first.adapter.gamma, start=last.adapter)
    second = replace(first)
    shared = SharedStart([first, trained, second], 2**30)
    run = Run.of(first, corpus, tiny_base.device)
    losses, replays = [], []
    for each in (run, replace(run, config=trained, adapter=spec), replace(run, config=second)):
        steps = list(train(tiny_base, corpus, [each], shared=shared))
        losses.append(next(rows(steps)).metrics["loss"])
        replays.append(shared.replays)
    assert losses[1] < losses[0] == losses[2]
    assert replays == [0, 0, 1]


def test_a_cell_that_diverges_disturbs_no_other(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    each = ("optimizer=sgd", "optimizer.lr=1e30"), ("optimizer=sgd",), ("optimizer.lr=1e30",)
    pack = Pack(tiny_base, corpus, [[cell("probes.steps=null", *of_cell)] for of_cell in each])
    pack.assert_equal()
    assert pack.replays == [0, 1, 1]
    ended = [[row.diverged for row in rows(steps)][-1] for steps in pack.together]
    assert ended[:2] == [True, False]


def test_the_state_after_a_shared_start_is_that_of_the_cell_alone(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    """So a checkpoint does not depend on the pack. A cell that goes on from one shares nothing."""
    probes = ("probes.stats=[norm,r_align]", "probes.steps=[0,1,2]", "train.steps=2")
    cells = [cell(*probes, "adapter.rank=4", f"optimizer={name}") for name in ("sgd", "adamw")]
    runs = [Run.of(config, corpus, tiny_base.device) for config in cells]

    def second(shared: SharedStart | None) -> tuple[Snapshot, Steps]:
        steps = train(tiny_base, corpus, runs[1:], shared=shared)
        [row] = first = next(steps)
        assert row is not None
        return row.snapshot().copied(), [first, *steps]

    shared = SharedStart([*cells, replace(cells[0])], 2**30)
    list(train(tiny_base, corpus, runs[:1], shared=shared))
    (ours, steps), (alone, _) = second(shared), second(None)
    assert shared.replays == 1
    assert ours.step == alone.step == 1
    assert ours.tensors.keys() == alone.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, alone.tensors[name]), name
    assert {**ours.state, "seconds": 0} == {**alone.state, "seconds": 0}
    assert_same(list(train(tiny_base, corpus, runs[1:], [ours], shared)), steps[1:], 0.0)
    assert shared.replays == 1


def test_memory_is_limited(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    """The oldest pass makes room. One without room, or that no later cell needs, is not kept."""
    few = (*UNPROBED, "train.eval_every=0", "adapter.targets=[down_proj]")
    seeds = (0, 1, 0, 1, 1)
    cells = [[cell(*few, f"seed={seed}", f"adapter.rank={2 + k}")] for k, seed in enumerate(seeds)]
    features = sum(tiny_base.model.get_submodule(path).in_features for path in DOWN)
    outputs = sum(tiny_base.model.get_submodule(path).out_features for path in DOWN)
    most = 4 * 3 * 48 * (features + outputs)  # bytes of a batch of 3 that was not trimmed
    least = most // 2
    for limit, replays in ((2 * most, [0, 0, 1, 1, 1]), (most, [0, 0, 0, 1, 1]), (least, [0] * 5)):
        pack = Pack(tiny_base, corpus, cells, limit)
        assert pack.replays == replays
        pack.assert_equal()
