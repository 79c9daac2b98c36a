"""Every field of PEFT's LoraConfig is either read, known to be inert, or refused."""

from dataclasses import fields
from typing import Any

import pytest

from study.vocabulary.peft_fields import INERT, KEEPING_BASE, LAYERS, PLAIN, READ, refusal

peft = pytest.importorskip("peft")


def test_the_table_has_every_field_of_peft_once() -> None:
    known = [*READ, *INERT, *LAYERS, *PLAIN]
    assert len(known) == len(set(known))
    assert {field.name for field in fields(peft.LoraConfig)} <= set(known)


def test_the_defaults_of_peft_are_plain_lora() -> None:
    assert refusal(peft.LoraConfig().to_dict(), trained=False) is None


@pytest.mark.parametrize("key", sorted(PLAIN))
@pytest.mark.parametrize("value", [True, "false", 1])
def test_other_values_are_refused_by_name(key: str, value: Any) -> None:
    said = refusal({key: value}, trained=True)
    assert said is not None
    assert said.startswith(f"{key}={value!r} is not plain LoRA: only null")


def test_a_choice_of_layers_matters_only_for_training() -> None:
    for key in LAYERS:
        assert refusal({key: [1]}, trained=True) is None
        assert str(refusal({key: [1]}, trained=False)).startswith(f"{key}=[1] is not plain LoRA")


@pytest.mark.parametrize("init", ["pissa", "loftq", "true", 1, ["eva"]])
def test_inits_that_change_the_base_are_refused(init: Any) -> None:
    said = str(refusal({"init_lora_weights": init}, trained=True))
    assert said.startswith(f"init_lora_weights={init!r} changes the base's weights")


@pytest.mark.parametrize("init", [None, *KEEPING_BASE])
def test_inits_that_keep_the_base_are_read(init: Any) -> None:
    assert refusal({"init_lora_weights": init}, trained=True) is None


def test_a_field_of_a_later_peft_is_refused_unless_it_is_empty() -> None:
    assert refusal({"use_new": False, "new_config": None, "new_list": []}, trained=True) is None
    assert "use_new=True is not plain LoRA" in str(refusal({"use_new": True}, trained=True))
