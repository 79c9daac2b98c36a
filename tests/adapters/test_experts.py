"""Adapters on experts and on GPT-2's transposed layers: products, PEFT's format, refusals."""

import copy
import json

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from study.adapters import AdapterSpec, adapted
from study.adapters.experts import check_possible
from study.errors import StudyError
from study.training.peft_format import CONFIG, read_adapter, write_adapter
from tests.models import small

peft = pytest.importorskip("peft")

SMALL = small.SMALL | {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
SMALL |= {"num_local_experts": 4, "num_experts_per_tok": 2}
SHARED = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
}
FAMILIES = {
    "mixtral": small.mixtral(),
    # Its weights are [E, D, O] and have biases.
    "gpt_oss": transformers.GptOssConfig(**SMALL, head_dim=8),
    # Linear layers of the same names stand beside the experts.
    "deepseek_v3": transformers.DeepseekV3Config(**SMALL, **SHARED),
    # It has no experts, and the weights of its layers are [D, O].
    "gpt2": small.gpt2(),
}
LINEARS = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
IDS_BT = torch.arange(40).view(4, 10)


@pytest.fixture(params=FAMILIES)
def model(request):
    return built(FAMILIES[request.param])


def built(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def layers_of(model):
    """The adapted layers: some linears, and all experts."""
    modules = model.named_modules()
    linears = [p for p, m in modules if isinstance(m, nn.Linear | Conv1D) and p.endswith(LINEARS)]
    return linears + experts_of(model)


def experts_of(model):
    return [path for path, _ in model.named_parameters() if path.endswith(EXPERTS)]


def move(pairs):
    """Make B non-zero."""
    for number, pair in enumerate(pairs):
        stream = torch.Generator().manual_seed(number)
        pair.B_OR.data.copy_(torch.randn(pair.B_OR.shape, generator=stream) / 8)


def weight_of(model, layer):
    """The weight of a linear layer or of all experts, and whether it is transposed."""
    path, _, name = layer.rpartition(".")
    owner = model.get_submodule(path)
    found = getattr(owner, name)
    if isinstance(found, nn.Module):
        return found.weight, isinstance(found, Conv1D)
    return found, owner.is_transposed


def merged(model, pairs):
    """A copy whose weights, which get gradients, are ``W + gamma B A``, expert by expert."""
    whole = copy.deepcopy(model).requires_grad_()
    for layer, (A, B, gamma) in pairs.items():
        W, is_transposed = weight_of(whole, layer)
        delta = gamma * B.detach() @ A.detach()
        W.data += delta.mT if is_transposed else delta
    return whole


def test_each_cell_of_a_fold_runs_with_its_own_experts(model):
    """Gradients: ``gamma B^T G`` of A and ``gamma G A^T`` of B, with G that of the weight."""
    specs = [AdapterSpec(2, 1.5, seed=0), AdapterSpec(2, 0.5, seed=1), AdapterSpec(3, 0.7, seed=2)]
    ids_BT = IDS_BT.repeat(3, 1)
    plain = model(IDS_BT).logits
    with adapted(model, layers_of(model), specs) as banks:
        torch.testing.assert_close(model(ids_BT).logits, plain.repeat(3, 1, 1))
        move([pair for bank in banks for pair in bank.pairs])
        pairs_K = [{bank.layer: bank.pairs[cell] for bank in banks} for cell in range(3)]
        logits = model(ids_BT).logits
        logits.square().sum().backward()
        for bank in banks:
            bank.bind_grads()
    for found, pairs in zip(logits.chunk(3), pairs_K, strict=True):
        whole = merged(model, pairs)
        expected = whole(IDS_BT).logits
        assert (expected - plain).abs().max() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        expected.square().sum().backward()
        for layer, (A, B, gamma) in pairs.items():
            W, is_transposed = weight_of(whole, layer)
            G = W.grad.mT if is_transposed else W.grad
            for factor, wanted in (
                (A, gamma * B.detach().mT @ G),
                (B, gamma * G @ A.detach().mT),
            ):
                within = 1e-4 * float(wanted.abs().max())
                torch.testing.assert_close(factor.grad, wanted, rtol=1e-3, atol=within)
    assert torch.equal(model(IDS_BT).logits, plain), "the plain model is restored"


def test_a_small_adapter_on_bf16_experts_is_not_lost():
    """``1 - <d, D> / <d, d>``: d is what the adapter adds to the output in float32, D in bf16."""
    wide = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1}
    model = built(transformers.MixtralConfig(**SMALL | wide)).bfloat16()
    layers = experts_of(model)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 128, generator=stream).bfloat16()
    index, weights = torch.randint(4, (2048, 2), generator=stream), torch.full((2048, 2), 0.5)
    weights = weights.bfloat16()
    with adapted(model, layers, [AdapterSpec(2, 1.5)]) as banks, torch.no_grad():
        experts = model.model.layers[0].mlp.experts
        plain, exact = experts(x, index, weights), copy.deepcopy(experts.base).float()
        y_0 = exact(x.float(), index, weights.float())
        for size in (1e-4, 1e-3, 1e-2):
            move([bank.pairs[0] for bank in banks])
            for bank in banks:
                A, B, gamma = bank.pairs[0]
                W = experts.base.get_parameter(bank.name)
                B *= size * W.float().norm() / (gamma * B @ A).norm()
                exact.get_parameter(bank.name).data = W.float() + gamma * (B @ A).float()
            d = exact(x.float(), index, weights.float()) - y_0
            with torch.autocast("cpu", torch.bfloat16):
                changed = (experts(x, index, weights) - plain).float()
            assert float(1 - (d * changed).sum() / d.square().sum()) == pytest.approx(0, abs=0.06)


def test_a_trained_adapter_is_one_of_peft_and_comes_back(model, tmp_path):
    layers = layers_of(model)
    with adapted(model, layers, [AdapterSpec(3, 0.7)]) as banks, torch.no_grad():
        move([bank.pairs[0] for bank in banks])
        expected = model(IDS_BT).logits
        pairs = {bank.layer: bank.pairs[0] for bank in banks}
    modules = dict(model.named_modules())
    write_adapter(tmp_path / "own", pairs, alpha=2.1, exponent=1.0, modules=modules)
    config = json.loads((tmp_path / "own" / CONFIG).read_text())
    assert config["fan_in_fan_out"] == isinstance(model, transformers.GPT2LMHeadModel)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "own").eval()
    torch.testing.assert_close(theirs(IDS_BT).logits, expected, rtol=1e-4, atol=1e-5)

    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("own", "theirs"):
        back = read_adapter(tmp_path / folder)
        assert back.pairs.keys() == pairs.keys()
        with adapted(model, layers, [AdapterSpec(3, 1.0, start=back.pairs)]), torch.no_grad():
            assert torch.equal(model(IDS_BT).logits, expected)


@pytest.mark.parametrize(
    ("rank", "dropout", "message"),
    [
        (4, 0.1, r"adapter.dropout=0.1 can't act on experts: use 0, or leave"),
        (float("inf"), 0.0, r"adapter.rank=inf is for linear layers: use a finite rank, or leave"),
    ],
)
def test_what_is_refused(rank, dropout, message):
    check_possible([], rank, dropout)
    with pytest.raises(StudyError, match=message):
        check_possible(["model.layers.0.mlp.experts.down_proj"], rank, dropout)
