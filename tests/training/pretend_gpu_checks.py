"""What training does on a GPU: its numbers, and where the host waits.

``make gpu`` runs this file on a CUDA device. Without one the GPU is a pretend one, and
``test_pretend_gpu.py`` runs this file in a process of its own.
"""

import copy
import math
import warnings
from collections import Counter

import pandas as pd
import pytest
import torch

from study.probes.alignment import weight_gradient
from study.training.loop import train
from study.training.optimizers import build_optimizer, step_if
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import STATS
from tests.pretend_gpu import PretendGpu, move, register
from tests.trained import copied

IS_CUDA, CPU = torch.cuda.is_available(), torch.device("cpu")
GPU = torch.device("cuda") if IS_CUDA else register()
PLAIN = ("train.steps=2", "train.eval_every=0", "probes.steps=null")
WILD = ("optimizer=sgd", "optimizer.lr=1e30")
FEW = "adapter.targets=[down_proj]"


@pytest.fixture(scope="module")
def gpu_base(tiny_base):
    """A copy of the tiny base on the pretend device."""
    copied = copy.deepcopy(tiny_base)
    with Gpu():
        move(copied.model, GPU)
    return copied


class Cuda(warnings.catch_warnings):
    """A CUDA device, of which torch warns when the host waits for it. ``waits`` counts this."""

    def __enter__(self):
        super().__enter__()
        self.waits = Counter()
        self.sent = 0
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *where, **_: self.waits.update(
            [f"{message} {where}"]
        )
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *exception):
        torch.cuda.set_sync_debug_mode("default")
        super().__exit__(*exception)


Gpu = Cuda if IS_CUDA else PretendGpu


class OnGpu:
    """A fold that was trained on the GPU: its steps, and the waits in each of them."""

    def __init__(self, base, corpus, cells, resume=(), see=lambda rows: None):
        self.steps, self.waits, self.sent = [], [], []
        with Gpu() as gpu:
            steps = train(base, corpus, cells, resume)
            waits, sent = gpu.waits.copy(), gpu.sent
            for rows in steps:
                see(rows)
                self.steps.append(rows)
                self.waits.append(gpu.waits - waits)
                self.sent.append(gpu.sent - sent)
                waits, sent = gpu.waits.copy(), gpu.sent


def assert_close(found, wanted, rel=1e-3 if IS_CUDA else 1e-4):
    """The same rows within rounding."""
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is None or other is None:
                continue
            assert one.diverged == other.diverged
            assert list(one.metrics) == list(other.metrics)
            wanted_row = other.metrics | {"seconds": one.metrics["seconds"]}
            assert one.metrics == pytest.approx(wanted_row, rel=rel, nan_ok=True), one.step


@pytest.fixture
def both(tiny_base, gpu_base, corpus):
    """Trains a fold on the pretend device and on the CPU, and compares their rows."""

    def run(cells, **more):
        found, wanted = (
            OnGpu(gpu_base, corpus, cells, **more),
            list(train(tiny_base, corpus, cells)),
        )
        assert_close(found.steps, wanted)
        return found, wanted

    return run


FOLDS = (["adamw"], ["adam", "sgd"], ["momentum", "muon", "adafactor", "lion"])


@pytest.mark.parametrize("optimizers", FOLDS, ids=len)
def test_a_plain_step_never_waits(both, cell, optimizers):
    """Its numbers are the CPU's, and leave the device in one copy that does not block."""
    ranks = (2, 4, 4, 8)
    targets = FEW if len(optimizers) > 2 else "adapter.targets=all-linear"
    cells = [
        cell(*PLAIN, targets, f"adapter.rank={rank}", f"optimizer={name}", "train.clip=2")
        for name, rank in zip(optimizers, ranks, strict=False)
    ]
    found, _ = both(cells)
    # In the first step optimizers make their state, and transformers' Adafactor copies it.
    assert found.waits[1:] == [Counter()] * 2
    assert IS_CUDA or found.sent == [1] * 3


def test_a_probed_and_evaluated_step_never_waits(both, cell):
    """With every statistic but r_nuc and row_share, which are eigenvalue problems. The numbers of
    each of the three batches leave in one copy, those of the step in another; they can be read
    without a wait once the next step is under way.
    """
    every = ("probes.every=1", "probes.steps=null", "probes.batch=all", "probes.tokens=8")
    free = [stat for stat in STATS if stat not in ("r_nuc", "row_share")]
    stats = f"probes.stats=[{','.join(free)}]"
    shared = (*every, stats, FEW, "train.steps=1", "train.eval_every=1", "train.clip=0.5")
    cells = [cell(*shared, f"adapter.rank={rank}", f"seed={rank}") for rank in (2, 4)]
    rows = []
    arrived = []

    def see(results):
        rows.extend(result for result in results[:1] if result)
        arrived.append([row.arrived for row in rows])

    found, wanted = both(cells, see=see)
    assert found.waits[1:] == [Counter()]
    assert IS_CUDA or found.sent == [4] * 2
    assert IS_CUDA or arrived == [[False], [True, False]]
    for ours, theirs in zip(found.steps, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            # Statistics that tiny differences decide (arcsines near 1) have fewer digits.
            pd.testing.assert_frame_equal(one.probes, other.probes, rtol=5e-3, atol=1e-6)


def test_a_resumed_step(tiny_base, gpu_base, corpus, cell):
    """A snapshot of the device continues there bit for bit, and on a CPU within rounding."""
    cells = [cell(*PLAIN, f"optimizer={name}", FEW) for name in ("adamw", "momentum")]
    taken = []

    def see(rows):
        taken.append([copied(row.snapshot()) for row in rows if row])

    whole = OnGpu(gpu_base, corpus, cells, see=see)
    resumed = OnGpu(gpu_base, corpus, cells, taken[0])
    assert resumed.waits[1:] == [Counter()]
    assert_close(resumed.steps, whole.steps[1:], rel=1e-5 if IS_CUDA else 0)
    assert_close(list(train(tiny_base, corpus, cells, taken[0])), whole.steps[1:])


def test_a_cell_that_diverges_disturbs_no_other(both, cell):
    """Its last row is the one where it diverged, as on a CPU, and nobody waits to find out."""
    shared = ("train.steps=4", "probes.steps=[2]", "probes.sites=[B_update]")
    cells = [
        cell(*PLAIN, *shared, "adapter.rank=2"),
        cell(*PLAIN, *shared, *WILD, "adapter.rank=4", "train.clip=1e30"),
        cell(*PLAIN, *shared, "adapter.rank=8", "optimizer=lion"),
    ]
    found, _ = both(cells)
    assert found.waits[1:] == [Counter()] * 4
    ended = [rows[1] is None for rows in found.steps]
    assert any(ended)
    assert found.steps[ended.index(True) - 1][1].diverged


def test_weight_gradients_of_alignments_are_exact_in_bf16():
    draw = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(2, 64, n, generator=draw).bfloat16() for n in (5, 7))
    with Gpu():
        found = weight_gradient(x.to(GPU), dy.to(GPU)).cpu()
    exact = torch.bmm(dy.double().mT, x.double())
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_only_where_a_cell_is_alive(cell, name):
    """A step is that of a CPU. One with gradients that are not finite changes no weight. Neither
    waits for the device, once the optimizer has its state.
    """
    config = cell(f"optimizer={name}").optimizer
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in ((3, 5), (6, 3))]
    gradients = [torch.randn(w.shape, generator=draw) for w in start]

    def stepped(device, *alive):
        weights = [torch.nn.Parameter(w.clone().to(device)) for w in start]
        optimizer = build_optimizer(config, weights[:1], weights[1:])
        for go in alive:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = (gradient if go else gradient * math.nan).to(device)
            flag = torch.tensor(go).to(device)
            gpu.waits.clear()
            step_if(flag, optimizer, weights)
        assert not gpu.waits
        return [w.detach().cpu() for w in weights]

    with Gpu() as gpu:
        once, then_dead = stepped(GPU, True, True), stepped(GPU, True, True, False)
        never = stepped(GPU, False, False)
        expected = stepped(CPU, True, True)
    for ours, later, wanted, old, same in zip(once, then_dead, expected, start, never, strict=True):
        torch.testing.assert_close(ours, wanted)
        assert not torch.equal(ours, old)
        assert torch.equal(later, ours)
        assert torch.equal(same, old)
