"""Adapters that a stranger made: one line each, in bounded time and memory."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .changes import Change, Refused, replaced, text, update
from .conftest import BOMB

Q = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def adapter(here: Path) -> Path:
    """A PEFT adapter of rank 2 for one layer of the tiny model."""
    folder = here / "a"
    folder.mkdir()
    values = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": False,
        "bias": "none",
        "target_modules": ["model.layers.0.self_attn.q_proj"],
        "init_lora_weights": True,
    }
    (folder / CONFIG).write_text(json.dumps(values))
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 64), f"{Q}.lora_B.weight": torch.ones(64, 2)}
    save_file(tensors, folder / WEIGHTS)
    return folder


def field(**changes: Any) -> Change:
    return lambda folder: update(folder / CONFIG, changes)


def factor(name: str, tensor: torch.Tensor | None) -> Change:
    """Change a tensor, or remove it."""

    def act(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        tensors[name] = torch.zeros(1) if tensor is None else tensor
        if tensor is None:
            del tensors[name]
        save_file(tensors, folder / WEIGHTS)

    return act


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
ENDLESS = "(?:(?P<a>.)|(?P<b>..)|(?P<c>...))*" + "(?P=a)(?P=b)(?P=c)(?P=a)(?P=b)"
"""A regex that takes hours to match."""
NUMBER = "it must be a number above 0"
WHOLE = "it must be a whole number from 1"
CHANGES_BASE = "changes the base's weights"
ADAPTERS: dict[str, tuple[Change, str]] = {
    "text for a truth": (field(use_rslora="false"), "use_rslora='false': it must be true or false"),
    "1 for a truth": (field(use_rslora=1), "use_rslora=1: it must be true or false"),
    **{
        f"init {init}": (field(init_lora_weights=init), CHANGES_BASE)
        for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "new", 1, [])
    },
    "DoRA": (field(use_dora=True), "use_dora=True is not plain LoRA"),
    "DoRA in text": (field(use_dora="false"), "use_dora='false' is not plain LoRA"),
    "biases": (field(bias="all"), "bias='all' is not plain LoRA"),
    "a bias of LoRA": (field(lora_bias=True), "lora_bias=True is not plain LoRA"),
    "whole modules": (field(modules_to_save=["lm_head"]), "modules_to_save=['lm_head']"),
    "an unknown field": (field(use_new_thing=True), "use_new_thing=True is not a known field"),
    "rank 0": (field(r=0), f"r=0: {WHOLE}"),
    "rank -1": (field(r=-1), f"r=-1: {WHOLE}"),
    "rank 2.0": (field(r=2.0), f"r=2.0: {WHOLE}"),
    "rank true": (field(r=True), f"r=True: {WHOLE}"),
    "rank in text": (field(r="2"), f"r='2': {WHOLE}"),
    "rank null": (field(r=None), f"r=None: {WHOLE}"),
    "rank 10**9": (field(r=10**9), "says rank 1000000000"),
    "rank of 400 digits": (field(r=10**399), WHOLE),
    "alpha NaN": (field(lora_alpha=float("nan")), f"lora_alpha=nan: {NUMBER}"),
    "alpha infinite": (field(lora_alpha=float("inf")), f"lora_alpha=inf: {NUMBER}"),
    "alpha of 400 digits": (field(lora_alpha=10**399), NUMBER),
    "alpha of 5000 digits": (
        lambda folder: (folder / CONFIG).write_text('{"lora_alpha": ' + "9" * 5000 + "}"),
        "is not valid JSON",
    ),
    "alpha in text": (field(lora_alpha="4"), f"lora_alpha='4': {NUMBER}"),
    "alpha in a list": (field(lora_alpha=[4]), f"lora_alpha=[4]: {NUMBER}"),
    "a list of ranks": (field(rank_pattern=[2]), "rank_pattern=[2]: it must be an object"),
    "a number for ranks": (field(rank_pattern=3), "rank_pattern=3: it must be an object"),
    "text for a rank": (field(rank_pattern={"q_proj": "2"}), "rank_pattern[q_proj]='2'"),
    "null for a rank": (field(rank_pattern={"q_proj": None}), "rank_pattern[q_proj]=None"),
    "an object for a rank": (field(rank_pattern={"q_proj": {}}), "rank_pattern[q_proj]={}"),
    "text for an alpha": (field(alpha_pattern={"q_proj": "4"}), "alpha_pattern[q_proj]='4'"),
    "an infinite alpha": (field(alpha_pattern={"q": float("inf")}), "alpha_pattern[q]=inf"),
    "another rank": (field(rank_pattern={"q_proj": 7}), "says rank 7"),
    "a wrong pattern": (field(rank_pattern={"q_proj(": 2}), "not a valid regex"),
    "a pattern without end": (field(rank_pattern={ENDLESS: 2}), "rank_pattern takes over 1 s"),
    "targets without end": (field(target_modules="(x+x+)+y"), "names no base"),
    "a number for targets": (field(target_modules=3), "target_modules=3: it must be"),
    "numbers for targets": (field(target_modules=[3]), "target_modules=[3]: it must be"),
    "dropout in text": (field(lora_dropout="0.1,0.2"), "lora_dropout='0.1,0.2': it must be"),
    "dropout 1": (field(lora_dropout=1), "lora_dropout=1: it must be"),
    "a number for a base": (field(base_model_name_or_path=7), "base_model_name_or_path=7: it must"),
    "a base that is a variable": (
        field(base_model_name_or_path="${oc.env:HOME}/x"),
        "model.path='${oc.env:HOME}/x' does not exist",
    ),
    "a base with an override": (
        field(base_model_name_or_path="x,y device=cuda"),
        "model.path='x,y device=cuda' does not exist",
    ),
    "another type": (field(peft_type="VERA"), "unknown adapter type 'VERA'"),
    "a list for a type": (field(peft_type=["LORA"]), "unknown adapter type ['LORA']"),
    "no keys": (text(CONFIG, "{}"), "lacks peft_type, r, lora_alpha"),
    "a list": (text(CONFIG, "[]"), "holds a list"),
    "half a config": (text(CONFIG, '{"r": '), "is not valid JSON"),
    "a binary config": (text(CONFIG, b"\xff\xfe\0"), "is not UTF-8"),
    "a key twice": (text(CONFIG, '{"r": 1, "r": 2}'), "the key 'r' occurs twice"),
    "a deep config": (text(CONFIG, '{"a":' * 90_000), "is not valid JSON"),
    "a config of 3 MB": (text(CONFIG, " " * 3_000_000), "is larger than 2 MiB"),
    "a config that is a pipe": (replaced(CONFIG, os.mkfifo), "is not a file"),
    "weights that are a pipe": (replaced(WEIGHTS, os.mkfifo), "is not a file"),
    "weights of zeros": (
        replaced(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
        "is not a file",
    ),
    "pickled weights": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        "is a pickle, which is not safe to open",
    ),
    "half the weights": (lambda folder: os.truncate(folder / WEIGHTS, 400), "is damaged"),
    "weights of 3 bytes": (text(WEIGHTS, b"abc"), "is damaged"),
    "a header of 2**60 bytes": (text(WEIGHTS, struct.pack("<Q", 2**60)), "eader"),
    "A of another rank": (factor(A, torch.ones(3, 64)), "q_proj has lora_A [3, 64]"),
    "A for another base": (
        factor(A, torch.ones(2, 65)),
        "its model.layers.0.self_attn.q_proj is 65",
    ),
    "a vector": (factor(B, torch.ones(64)), "q_proj has lora_A [2, 64] and lora_B [64]"),
    "A without B": (factor(B, None), "has no lora_B for model.layers.0.self_attn.q_proj"),
    "B without A": (factor(A, None), "has no lora_A for model.layers.0.self_attn.q_proj"),
    "NaN": (factor(A, torch.full((2, 64), float("nan"))), "q_proj has non-finite weights"),
    "too large for float32": (
        factor(A, torch.full((2, 64), 1e300, dtype=torch.float64)),
        "q_proj has non-finite weights",
    ),
    "integers": (factor(A, torch.ones(2, 64, dtype=torch.int32)), "lora_A of I32"),
    "an extra tensor": (
        factor("lm_head.weight", torch.ones(2)),
        "has lm_head.weight, which",
    ),
    "an unknown layer": (
        lambda folder: [
            factor(name.replace("q_proj", "x\u202e"), tensor)(folder)
            for name, tensor in load_file(folder / WEIGHTS).items()
        ],
        "for another base",
    ),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter(refused: Refused, adapter: Path, case: str) -> None:
    change, says = ADAPTERS[case]
    change(adapter)
    own_base = case.startswith(("a base", "targets without"))
    refused(f"import a {'' if own_base else 'model=tiny'}", says, seconds=BOMB)


def test_the_adapter_is_read_if_nothing_is_wrong(run: Callable[..., Any], adapter: Path) -> None:
    ended = run("import a model=tiny", seconds=20)
    assert ended.code == 0, ended.err
    assert "1 layers, rank 2, gamma 2 (lora)" in ended.out


def test_an_adapter_path_that_is_not_there(refused: Refused) -> None:
    refused("train adapter.path=absent", "absent/adapter_config.json does not exist")


def test_targets_without_end(refused: Refused) -> None:
    refused(["train", f"adapter.targets='{ENDLESS}'"], "adapter.targets takes over", seconds=BOMB)
