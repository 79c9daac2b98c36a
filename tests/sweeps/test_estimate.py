"""Estimates agree with what training takes: bytes, FLOPs and folds."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from study.adapters import AdapterSpec, Contraction, adapted
from study.adapters.contraction import FORMS
from study.config import CellConfig
from study.data import Corpus
from study.errors import StudyError
from study.models import FrozenBase, describe
from study.sweeps import packs
from study.sweeps.cells import plan
from study.sweeps.estimate import Estimate, check_fits, estimate, fold_bytes, memory_budget
from study.sweeps.packs import Prepared, PreparedPack, fastest_fold, fold_sizes
from study.sweeps.plan import render_plan
from study.training.fold import LOGITS
from study.training.loop import train
from study.training.optimizers import build_optimizer
from study.training.run import Run, typical_step
from study.vocabulary.optimizers import OPTIMIZERS

Build = Callable[..., CellConfig]
CPU = torch.device("cpu")
# torch counts baddbmm and not its in-place form; a and b are shapes
IN_PLACE = {torch.ops.aten.baddbmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}


def of(config: CellConfig, corpus: Corpus, form: str = "factored", device: str = "cpu") -> Estimate:
    tokens, supervised = typical_step(config, corpus, CPU)
    contraction = Contraction(form, tokens)
    return estimate(config, describe(config.model), tokens, supervised, contraction, device)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_are_counted_as_they_are_kept(name: str, cell: Build) -> None:
    config = cell(f"optimizer={name}")
    A, B = torch.zeros(64, 96, requires_grad=True), torch.zeros(80, 64, requires_grad=True)
    optimizer = build_optimizer(config.optimizer, [A], [B])
    A.grad, B.grad = torch.randn_like(A), torch.randn_like(B)
    optimizer.step()
    kept = sum(
        t.numel()
        for state in optimizer.state.values()
        for t in state.values()
        if isinstance(t, torch.Tensor)
    )
    # Step counts, and Adafactor's means per row and column, are under 0.05 numbers per weight.
    assert kept / (A.numel() + B.numel()) == pytest.approx(OPTIMIZERS[name].states, abs=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_flops_are_what_torch_counts(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build, form: str, targets: str
) -> None:
    """But for attention's own products, which a plan leaves out, and which are few at 48 tokens."""
    config = cell(
        f"adapter.contraction={form}",
        f"adapter.targets={targets}",
        "adapter.rank=16",
        "train.steps=8",
        "train.eval_every=0",
        "probes.steps=null",
    )
    run = Run.of(config, corpus, CPU)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        list(train(tiny_base, corpus, [run]))
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counted.items() if "attention" not in op)
    assert of(config, corpus, form).flops == pytest.approx(products, rel=0.12)


def test_activations_are_what_autograd_keeps(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build
) -> None:
    config = cell("adapter.rank=2", "train.batch_size=16", "probes.steps=null")
    tokens, _ = typical_step(config, corpus, CPU)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = corpus.train.batch(0, 0, 16).trimmed()
    frozen = {p.untyped_storage().data_ptr() for p in tiny_base.model.parameters()}
    with adapted(tiny_base.model, tiny_base.card.linears, [AdapterSpec(2, 1.0)]) as banks:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            tiny_base.hidden_states(batch.input_ids_BT).sum()
        frozen |= {p.untyped_storage().data_ptr() for bank in banks for p in bank.parameters()}
    measured = sum(size for place, size in kept.items() if place not in frozen)
    per_token = sum(d + o for d, o in tiny_base.card.shapes) * 4
    assert per_token * batch.input_ids_BT.numel() == pytest.approx(measured, rel=0.25)
    assert tokens == pytest.approx(batch.input_ids_BT.numel(), rel=0.25)


def test_a_plan_grows_with_what_it_is_of(cell: Build, corpus: Corpus) -> None:
    plain = of(cell("adapter.rank=8", "optimizer=sgd", "probes.steps=null"), corpus)
    for more in (
        ("adapter.rank=64", "optimizer=sgd", "probes.steps=null"),
        ("adapter.rank=8", "optimizer=adamw", "probes.steps=null"),
        ("adapter.rank=8", "optimizer=sgd", "probes.steps=[0,1]"),
        ("adapter.rank=8", "optimizer=sgd", "probes.steps=null", "train.batch_size=6"),
    ):
        assert of(cell(*more), corpus).own_bytes > plain.own_bytes, more
    split = of(
        cell(
            "adapter.rank=8",
            "optimizer=sgd",
            "probes.steps=null",
            "train.batch_size=1",
            "train.accumulation=3",
        ),
        corpus,
    )
    assert split.own_bytes < plain.own_bytes, "micro-batches are there to save memory"


GB = 2**30


@pytest.mark.parametrize(
    ("own", "most", "allowed", "sizes"),
    [
        ([1, 1, 1, 1], 4, 100, [4]),
        ([1, 1, 1, 1], 4, 4, [3, 1]),
        ([1, 1, 2, 3], 4, 4, [2, 1, 1]),
        ([1, 1, 1], 1, 100, [1, 1, 1]),
        ([9, 9], 2, 4, [1, 1]),
    ],
    ids=["all fit", "base and three", "by weight", "one at once", "too large goes alone"],
)
def test_folds_fit(own: list[int], most: int, allowed: int, sizes: list[int]) -> None:
    needs = [Estimate(base_bytes=GB, own_bytes=size * GB, flops=1.0) for size in own]
    assert list(fold_sizes(needs, most, allowed * GB)) == sizes


def test_a_fold_holds_one_chunk_of_logits_on_its_device(cell: Build, corpus: Corpus) -> None:
    """Three copies of a chunk: 3.2 GB on CUDA, where a chunk is 16 times that of a CPU."""
    config = cell("train.batch_size=3")
    _, supervised = typical_step(config, corpus, CPU)
    small, many = (of(config, corpus, device=device) for device in ("cpu", "cuda"))
    assert small.own_bytes == many.own_bytes
    assert small.logits_bytes == 3 * 4 * 258 * supervised, "of tiny's 258 tokens"
    assert (small.chunk_bytes, many.chunk_bytes) == tuple(
        3 * 4 * LOGITS[device] for device in ("cpu", "cuda")
    )
    wide = [replace(many, logits_bytes=2 * GB)] * 8
    alone, folded = fold_bytes(wide[:1]), fold_bytes(wide)
    assert alone == many.base_bytes + many.own_bytes + 2 * GB
    assert folded == many.base_bytes + 8 * many.own_bytes + 3 * GB, "not 16 GB"
    assert list(fold_sizes(wide, 8, folded)) == [8]
    assert list(fold_sizes(wide, 8, folded - 1)) == [7, 1]


def test_the_budget_of_a_process_includes_the_base_that_it_holds(
    cell: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in memory are not free, and the estimate of a fold counts them."""
    for held in (0, 3 * GB):
        monkeypatch.setattr(
            "psutil.virtual_memory", lambda held=held: SimpleNamespace(available=10 * GB - held)
        )
        assert memory_budget(cell(), CPU, held) == int(0.8 * 10 * GB)
    assert memory_budget(cell("pack.memory_gb=2"), CPU, 3 * GB) == 2 * GB


def test_a_cell_beyond_the_budget_is_refused_by_name(cell: Build, corpus: Corpus) -> None:
    config = cell("pack.memory_gb=0.001")
    assert memory_budget(config, CPU) == int(0.001 * GB)
    with pytest.raises(
        StudyError,
        match=r"pack\.memory_gb=0\.001 is too little for the cell it, .* lower adapter\.rank",
    ):
        check_fits(config, of(config, corpus), "it")
    check_fits(cell("pack.memory_gb=4"), of(config, corpus), "it")
    check_fits(cell(), Estimate(2**60, 2**60, 1.0), "without a limit it is up to the machine")


def test_the_fold_is_found_by_trial(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [Run.of(cell(f"seed={seed}"), corpus, CPU) for seed in range(8)]
    fastest_fold(runs, tiny_base, corpus)
    assert not any("lora" in name.lower() for name, _ in tiny_base.model.named_modules()), (
        "the trial leaves no trace"
    )
    took = {1: 1.0, 2: 0.6, 4: 0.5, 8: 0.55}
    monkeypatch.setattr(packs, "seconds_per_cell", lambda runs, *_: took[len(runs)])
    assert fastest_fold(runs, tiny_base, corpus) == 4
    assert fastest_fold(runs[:3], tiny_base, corpus) == 2

    def out_of_memory(runs: list[Run], *_: object) -> float:
        if len(runs) > 2:
            raise torch.OutOfMemoryError
        return took[len(runs)]

    monkeypatch.setattr(packs, "seconds_per_cell", out_of_memory)
    assert fastest_fold(runs, tiny_base, corpus) == 2


def test_a_rendered_plan_adds_up(cell: Build, corpus: Corpus) -> None:
    needs = {4: Estimate(GB, 2 * GB, 1e15), 8: Estimate(GB, 5 * GB, 2e15)}
    cells = plan([cell(f"adapter.rank={rank}") for rank in needs])
    runs = [Run.of(each.config, corpus, CPU) for each in cells]
    prepared = list(map(Prepared, cells, runs, needs.values()))
    text = render_plan([PreparedPack(prepared, CPU, corpus, 10 * GB)])
    row = text.splitlines()[1].split()
    assert row[:2] == ["1", "2"]
    assert row[2:4] == ["4,", "8"]
    assert row[4:8] == ["3", "1.00", "5.00", "10.0"]
