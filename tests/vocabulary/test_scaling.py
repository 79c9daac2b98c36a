"""The rules."""

import math

import pytest

from study.vocabulary.scaling import RULES, exponent, gamma, named_rule


@pytest.mark.parametrize("rank", [1, 4, 7, 64, 2048])
def test_rules(rank: int) -> None:
    assert gamma("lora", 16.0, rank) == pytest.approx(16 / rank)
    assert gamma("rslora", 16.0, rank) == pytest.approx(16 / math.sqrt(rank))
    assert gamma("power", 16.0, rank, 0.5) == pytest.approx(gamma("rslora", 16.0, rank))
    assert gamma("lora", 16.0 * math.sqrt(rank), rank) == pytest.approx(gamma("rslora", 16.0, rank))
    assert gamma("power", 16.0, rank, 0.0) == 16.0


def test_peft_agrees() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    for use_rslora, rule in ((False, "lora"), (True, "rslora")):
        config = LoraConfig(r=48, lora_alpha=20, use_rslora=use_rslora, target_modules=["0"])
        model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), config)
        layer = model.base_model.model[0]
        assert layer.scaling["default"] == pytest.approx(gamma(rule, 20.0, 48))


@pytest.mark.parametrize("scaling", ["power", "lorra"])
def test_errors_name_the_choices(scaling: str) -> None:
    with pytest.raises(ValueError, match=r"exponent|choose from lora, rslora, power"):
        exponent(scaling)
    assert set(RULES) == {"lora", "rslora", "power"}


def test_a_number_is_the_exponent_of_the_power_rule() -> None:
    assert named_rule("0.75") == named_rule("7.5e-1") == ("power", 0.75)
    assert named_rule("0.5") == ("power", 0.5), "not rslora: the two stay apart"
    assert named_rule("rslora") == ("rslora", None)
    assert named_rule("power", 0.25) == ("power", 0.25)
    with pytest.raises(ValueError, match=r"adapter\.exponent=0\.5 is another"):
        named_rule("0.75", 0.5)
