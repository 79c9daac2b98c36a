"""Estimates agree with what training takes: bytes, FLOPs and folds."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from study.adapters import AdapterSpec, Contraction, adapted
from study.adapters.contraction import FORMS
from study.errors import StudyError
from study.models import describe, load_base
from study.sweeps.cells import plan
from study.sweeps.estimate import estimate, fold_bytes, full_estimate
from study.sweeps.packs import folds, prepare
from study.training.fold import typical_step
from study.training.optimizers import build_optimizer
from study.vocabulary.optimizers import OPTIMIZERS
from tests.trained import trained

CPU, GB = torch.device("cpu"), 2**30
# torch counts baddbmm and not its in-place form; a and b are shapes
IN_PLACE = {torch.ops.aten.baddbmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}


class Operations(TorchDispatchMode):
    """Counts operations, without views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **kwargs or {})


def of(config, corpus, form="factored", device="cpu"):
    tokens, supervised = typical_step(config, corpus)
    contraction = Contraction(form, tokens)
    return estimate(config, describe(config.model), tokens, supervised, contraction, device)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_are_counted_as_they_are_kept(name, cell):
    config = cell(f"optimizer={name}")
    A, B = torch.zeros(64, 96, requires_grad=True), torch.zeros(80, 64, requires_grad=True)
    optimizer = build_optimizer(config.optimizer, [A], [B])
    A.grad, B.grad = torch.randn_like(A), torch.randn_like(B)
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    kept = sum(t.numel() for t in tensors if isinstance(t, torch.Tensor))
    # Step counts, and Adafactor's means per row and column, are under 0.05 numbers per weight.
    assert kept / (A.numel() + B.numel()) == pytest.approx(OPTIMIZERS[name].states, abs=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_flops_are_what_torch_counts(tiny_base, corpus, cell, form, targets):
    """But for attention's own products, which a plan leaves out, and which are few at 48 tokens."""
    config = cell(
        *(f"adapter.contraction={form}", f"adapter.targets={targets}", "adapter.rank=16"),
        *("train.steps=8", "train.eval_every=0", "probes.steps=null"),
    )
    counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    with Operations() as operations, counter:
        trained(tiny_base, corpus, config)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counted.items() if "attention" not in op)
    need = of(config, corpus, form)
    assert need.flops == pytest.approx(products, rel=0.12)
    if form == "factored" and targets == "all-linear":
        assert need.operations == pytest.approx(operations.count, rel=0.25)
    on_gpu = of(config, corpus, form, "cuda")
    assert replace(on_gpu, flops=0.0).seconds(1.0) == pytest.approx(8e-6 * need.operations)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_activations_are_what_autograd_keeps(corpus, cell, precision):
    config = cell("adapter.rank=2", "train.batch_size=16", "probes.steps=null")
    base = load_base(config.model, CPU, precision)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = corpus.train.batch(0, 0, 16).trimmed()
    frozen = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    with adapted(base.model, base.card.linears, [AdapterSpec(2, 1.0)]) as banks:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            base.hidden_states(batch.input_ids_BT).sum()
        frozen |= {p.untyped_storage().data_ptr() for bank in banks for p in bank.parameters()}
    measured = sum(size for place, size in kept.items() if place not in frozen)
    need = of(replace(config, precision=precision), corpus)
    assert need.activation_bytes == pytest.approx(measured, rel=0.25)


def test_a_fold_on_a_cpu_has_the_cells_that_gain_and_fit(cell):
    """The first seed comes first, with its lowest and highest rank: the first exponent is early."""
    swept = [
        replace(
            cell(f"adapter.rank={rank}", f"adapter.scaling={rule}", "data.heldout=4"), seed=seed
        )
        for seed, rule, rank in product(range(6), ("lora", "rslora"), (2, 4, 2048))
    ]
    made = [[each.config for each in fold] for fold in folds(prepare(plan(swept)))]
    ranks = [[config.adapter.rank for config in fold] for fold in made]
    assert ranks[:3] == [[2, 2, 4, 4], [2048], [2048]], "adapters are most of a step"
    assert {config.seed for fold in made[:3] for config in fold} == {0}
    assert ranks[3:] == [[2] * 10 + [4] * 6, *[[2048]] * 10, [4] * 4]
    [need] = prepare(plan(swept[:1])).needs.values()
    tight = replace(swept[0].pack, memory_gb=fold_bytes([need] * 3) / GB)
    low = plan([replace(swept[0], seed=seed, pack=tight) for seed in range(8)])
    assert [len(fold) for fold in folds(prepare(low))] == [1, 3, 3, 1]


def test_low_ranks_of_smollm2_gain_from_a_fold(cell, tmp_path):
    """With 140 tokens, six of rank 16 were 1.45 times as fast, and six of rank 256 no faster."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    shape |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    LlamaConfig(**shape).save_pretrained(tmp_path)
    line = ["model=shape", f"model.path={tmp_path}", "train.batch_size=1", "probes.steps=null"]
    line += ["data.sequence_length=140", "train.steps=100", "train.eval_every=0"]
    cells = [cell(*line, f"adapter.rank={rank}") for rank in (16, 64, 256)]
    needs = [full_estimate(config, describe(config.model), "cpu") for config in cells]
    assert [need.gains for need in needs] == [True, True, False]
    assert needs[0].seconds(1) / needs[0].in_fold(6).seconds(1) == pytest.approx(1.45, abs=0.1)


def test_a_cell_beyond_the_budget_is_refused(cell, monkeypatch):
    prepare(plan([cell("pack.memory_gb=4")]))
    says = r"rank=8 takes about 0\.\d+ GiB, more than pack\.memory_gb=0\.001: raise pack\.memory_gb"
    with pytest.raises(StudyError, match=says):
        prepare(plan([cell("pack.memory_gb=0.001")]))
    monkeypatch.setattr("study.sweeps.estimate.all_memory", lambda: 2**20)
    with pytest.raises(StudyError, match=r"rank=8 takes about .* GiB, more than 0\.000977 GiB"):
        prepare(plan([cell()]))
