"""Targets are read as PEFT reads them, and the base is restored afterwards."""

import copy

import pytest
import torch

from study.adapters import AdapterSpec, LoraBank, adapted, resolve_targets
from study.errors import StudyError
from study.models import FrozenBase

LINEARS = [
    f"model.layers.{block}.{path}"
    for block in range(2)
    for path in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
]


def test_halves_of_a_block_and_single_names() -> None:
    assert resolve_targets(LINEARS, "attention") == [p for p in LINEARS if "self_attn" in p]
    assert resolve_targets(LINEARS, "mlp") == [p for p in LINEARS if "mlp" in p]
    assert resolve_targets(LINEARS, "q_proj") == [p for p in LINEARS if p.endswith("q_proj")]


@pytest.mark.parametrize("targets", ["k_proj", ["q_proj", "proj"], [], r"model\..*k_proj", "("])
def test_a_target_that_matches_nothing_names_the_choices(targets: str | list[str]) -> None:
    with pytest.raises(StudyError, match=r"down_proj, q_proj, up_proj, v_proj") as error:
        resolve_targets(LINEARS, targets)
    assert "\n" not in str(error.value)


def test_targets_agree_with_peft(tiny_base: FrozenBase) -> None:
    from peft import LoraConfig, get_peft_model

    for targets in (["q_proj", "1.mlp.down_proj"], r".*layers\.1\..*gate_proj", "all-linear"):
        ours = resolve_targets(tiny_base.card.linears, targets)
        peft_model = get_peft_model(
            copy.deepcopy(tiny_base.model), LoraConfig(r=2, target_modules=targets)
        )
        theirs = [n for n, m in peft_model.named_modules() if hasattr(m, "lora_A")]
        assert [f"base_model.model.{path}" for path in ours] == theirs


def test_the_base_is_restored_even_after_an_error(tiny_base: FrozenBase) -> None:
    ids = torch.arange(10)[None]
    before = tiny_base.hidden_states(ids)

    def fail_while_adapted() -> None:
        with adapted(tiny_base.model, tiny_base.card.linears, [AdapterSpec(2, 1.0)]) as banks:
            assert [bank.layer for bank in banks] == list(tiny_base.card.linears)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_while_adapted()
    assert not any(isinstance(module, LoraBank) for module in tiny_base.model.modules())
    assert torch.equal(tiny_base.hidden_states(ids), before)
