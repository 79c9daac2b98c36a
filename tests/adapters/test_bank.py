"""A bank: the draw of its first A and B, cutting it to a rank, and which layers get one."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from study.adapters import AdapterSpec, LoraBank, adapted, resolve_targets, truncating
from study.adapters.bank import initial_pair
from study.errors import StudyError
from study.vocabulary.inits import INITS, UNIFORM


@pytest.mark.parametrize("rank", [8, 96, 384])
@pytest.mark.parametrize("init", sorted(INITS))
def test_every_init_has_the_variance_it_states(init, rank):
    d, o = 96, 64
    A, B = initial_pair(AdapterSpec(rank, 1.0, seed=1, init=init), "layer", d, o)
    assert (A.shape, B.shape) == ((rank, d), (o, rank))
    drawn, zero = (A, B) if INITS[init].drawn == "A" else (B, A)
    assert not zero.any()
    variance = {
        "kaiming": 1 / (3 * d),
        "gaussian": 1 / d,
        "orthogonal": 1 / max(rank, d),
        "scaled": 1 / (3 * d * rank),
        "init_b": 1 / (3 * o),
    }[init]
    # Five standard deviations of a sample variance, whose variance is var^2 (2 + kurtosis) / n.
    spread = 5 * math.sqrt((2 + INITS[init].kurtosis) / drawn.numel())
    assert drawn.square().mean().item() == pytest.approx(variance, rel=spread)
    if INITS[init].kurtosis == UNIFORM:
        assert drawn.abs().max().item() <= math.sqrt(3 * variance) * (1 + 1e-6)


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "init_b"])
def test_ranks_draw_independently_and_rules_share_a_draw(init):
    """A fit over ranks takes its points for independent. 200 layers: |correlation| < 5 sd."""
    drawn = {"init_b": 1}.get(init, 0)
    pairs = []
    for layer in map(str, range(200)):
        low, high = (initial_pair(AdapterSpec(r, 1.0, init=init), layer, 48, 32) for r in (8, 64))
        shared = initial_pair(AdapterSpec(8, 9.0, init=init), layer, 48, 32)
        assert torch.equal(low[drawn], shared[drawn]), "gamma, so the rule, has no part in a draw"
        rows = (low[1].T, high[1].T[:8]) if drawn else (low[0], high[0][:8])
        pairs.append(torch.stack([row.flatten() for row in rows]))
    entries = torch.cat(pairs, dim=1)
    correlation = float(torch.corrcoef(entries)[0, 1])
    assert abs(correlation) < 5 / entries.shape[1] ** 0.5


# Cutting an adapter to rank k through its factors, against a dense SVD of ``gamma B A``.

D, O = 12, 9  # noqa: E741


def dense(delta, rank):
    U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


def test_a_bank_computes_with_the_truncated_delta_and_is_restored_afterwards():
    specs = [AdapterSpec(1, gamma=2.0), AdapterSpec(4, gamma=0.5), AdapterSpec(30, gamma=3.0)]
    bank = LoraBank(nn.Linear(D, O, bias=False), "layer", specs)
    bank.make_pairs()
    for pair in bank.pairs:
        nn.init.normal_(pair.B_OR)
    x = torch.randn(3, 7, D)
    before = bank(x)
    deltas = [pair.B_OR.detach() @ pair.A_RD.detach() * pair.gamma for pair in bank.pairs]
    with truncating([bank]) as keep:
        shares = keep(3)
        for out, x_cell, delta, share in zip(bank(x), x, deltas, shares, strict=True):
            torch.testing.assert_close(
                out, x_cell @ (bank.base.weight + dense(delta, 3)).mT, rtol=1e-4, atol=1e-4
            )
            assert share == pytest.approx(
                float(dense(delta, 3).square().sum() / delta.square().sum()), rel=1e-4
            )
        keep(0)
        torch.testing.assert_close(bank(x).flatten(0, 1), bank.base(x).flatten(0, 1))
    assert torch.equal(bank(x), before)


# Targets are read as PEFT reads them, and the base is restored afterwards.

LINEARS = [
    f"model.layers.{block}.{path}"
    for block in range(2)
    for path in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
]


@pytest.mark.parametrize("targets", ["k_proj", ["q_proj", "proj"], [], r"model\..*k_proj", "("])
def test_a_target_that_matches_nothing_names_the_choices(targets):
    with pytest.raises(StudyError, match=r"down_proj, q_proj, up_proj, v_proj"):
        resolve_targets(LINEARS, targets)


def test_targets_agree_with_peft(tiny_base):
    for targets in (["q_proj", "1.mlp.down_proj"], r".*layers\.1\..*gate_proj", "all-linear"):
        ours = resolve_targets(tiny_base.card.linears, targets)
        peft_model = get_peft_model(
            copy.deepcopy(tiny_base.model), LoraConfig(r=2, target_modules=targets)
        )
        theirs = [n for n, m in peft_model.named_modules() if hasattr(m, "lora_A")]
        assert [f"base_model.model.{path}" for path in ours] == theirs


def test_the_base_is_restored_even_after_an_error(tiny_base):
    ids = torch.arange(10)[None]
    before = tiny_base.hidden_states(ids)

    def fail_while_adapted():
        with adapted(tiny_base.model, tiny_base.card.linears, [AdapterSpec(2, 1.0)]) as banks:
            assert [bank.layer for bank in banks] == list(tiny_base.card.linears)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_while_adapted()
    assert not any(isinstance(module, LoraBank) for module in tiny_base.model.modules())
    assert torch.equal(tiny_base.hidden_states(ids), before)
