"""The tables of rules, optimizers and fields of PEFT: what others ask of them."""

import ast
import math
from dataclasses import fields
from pathlib import Path

import pytest

from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.peft_fields import INERT, KEEPING_BASE, LAYERS, PLAIN, refusal
from study.vocabulary.scaling import gamma

ROOT = Path(__file__).parents[2]
KNOWN_IN = ("vocabulary/optimizers.py", "training/optimizers.py", "theory/")


@pytest.mark.parametrize("rank", [1, 7, 2048])
def test_rules(rank):
    assert gamma("lora", 16.0, rank) == pytest.approx(16 / rank)
    assert gamma("rslora", 16.0, rank) == pytest.approx(16 / math.sqrt(rank))
    assert gamma("power", 16.0, rank, 0.5) == pytest.approx(gamma("rslora", 16.0, rank))
    assert gamma("lora", 16.0 * math.sqrt(rank), rank) == pytest.approx(gamma("rslora", 16.0, rank))
    assert gamma("power", 16.0, rank, 0.0) == 16.0
    assert gamma("crossover", 16.0, rank, crossover=0) == pytest.approx(gamma("lora", 16.0, rank))
    far = gamma("crossover", 16.0, rank, crossover=1e12)
    assert far * 1e6 == pytest.approx(gamma("rslora", 16.0, rank)), "below c, rsLoRA's form"


def test_no_other_module_names_an_optimizer():
    names = set(OPTIMIZERS) - {key for row in OPTIMIZERS.values() for key in row.options}
    files = (ROOT / "study").rglob("*.py")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in files
        if not str(path.relative_to(ROOT / "study")).startswith(KNOWN_IN)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert found == []


def test_the_table_has_every_field_of_peft_once_and_its_defaults_are_plain_lora():
    peft = pytest.importorskip("peft")
    known = [*INERT, *LAYERS, *PLAIN]
    assert len(known) == len(set(known))
    assert {field.name for field in fields(peft.LoraConfig)} <= set(known)
    assert refusal(peft.LoraConfig().to_dict(), trained=False) is None


@pytest.mark.parametrize("key", sorted(PLAIN))
@pytest.mark.parametrize("value", [True, "false", 1])
def test_other_values_of_peft_are_refused_by_name(key, value):
    said = str(refusal({key: value}, trained=True))
    assert said.startswith(f"{key}={value!r} is not plain LoRA: only null")


def test_inits_that_change_the_base_are_refused():
    for init in (None, *KEEPING_BASE):
        assert refusal({"init_lora_weights": init}, trained=True) is None
    for init in ("pissa", "loftq", "true", 1, ["eva"]):
        said = str(refusal({"init_lora_weights": init}, trained=True))
        assert said.startswith(f"init_lora_weights={init!r} changes the base's weights")
