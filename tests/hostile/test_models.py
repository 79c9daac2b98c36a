"""Models that a stranger made: one line each, in bounded time and memory, and no code is run."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from study.models import tiny

from .changes import Change, Refused, replaced, text, update
from .conftest import BOMB


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, here: Path) -> Path:
    """The tiny model in a folder of its own. Weights are a link: a change replaces the file."""
    folder = here / "m"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def config(**changes: Any) -> Change:
    return lambda folder: update(folder / "config.json", changes)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def act(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return act


def index(files: Any) -> Change:
    def act(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(files))

    return act


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Change:
    def act(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return act


def code(folder: Path) -> None:
    """Python that a checkpoint asks to run."""
    (folder / "evil.py").write_text("open('ran', 'w'); raise SystemExit(7)\n" * 2)
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"}
    update(folder / "config.json", {"auto_map": names, "model_type": "evil"})
    update(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}})


def sparse(size: int) -> Change:
    def act(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return act


PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
HUGE = 10**9
MODELS: dict[str, tuple[Change, str]] = {
    "100,000 layers": (config(num_hidden_layers=100_000), "num_hidden_layers=100000: at most 1000"),
    "10**400 layers": (config(num_hidden_layers=10**400), "at most 1000 layers"),
    "layers of a vision tower": (
        config(vision_config={"depth": HUGE}),
        "depth=1000000000: at most",
    ),
    "a billion features": (config(hidden_size=HUGE), "config.json needs"),
    "a billion heads": (
        config(num_attention_heads=HUGE),
        "num_attention_heads=1000000000",
    ),
    "a billion labels": (config(num_labels=HUGE), "num_labels=1000000000: at most"),
    "a billion tokens": (config(vocab_size=HUGE), "config.json needs [1000000000, 64]"),
    "another width": (config(intermediate_size=96), "mlp.down_proj.weight' has shape [64, 128]"),
    "minus one layer": (config(num_hidden_layers=-1), "no linear layers"),
    "minus one feature": (config(hidden_size=-64), "is not a causal language model"),
    "no features": (config(hidden_size=0), "m'"),
    "no positions": (config(max_position_embeddings=-5), "at least 2"),
    "text for a number": (config(hidden_size="64"), "config.json can't be used"),
    "text for layers": (config(num_hidden_layers="2"), "config.json can't be used"),
    "a list for a number": (config(vocab_size=[258]), "config.json can't be used"),
    "null for a number": (config(hidden_size=None), "m'"),
    "400 digits": (config(hidden_size=10**399), "m'"),
    "Infinity": (config(initializer_range=float("inf")), "config.json can't be used"),
    "an unknown type": (config(model_type="evil"), "config.json can't be used"),
    "a list for a type": (config(model_type=["llama"]), "config.json can't be used"),
    "no type": (text("config.json", "{}"), "config.json can't be used"),
    "empty config": (text("config.json", ""), "config.json is not valid JSON"),
    "half a config": (text("config.json", '{"model_type": "lla'), "config.json is not valid JSON"),
    "binary config": (text("config.json", bytes(range(256))), "config.json is not UTF-8"),
    "a list for a config": (text("config.json", "[]"), "config.json holds a list"),
    "a deep config": (text("config.json", '{"a":' * 90_000), "config.json is not valid JSON"),
    "a key twice": (text("config.json", '{"a": 1, "a": 2}'), "the key 'a' occurs twice"),
    "5 MB of config": (text("config.json", " " * 5_000_000), "config.json is larger than 4 MiB"),
    "a config that is a pipe": (replaced("config.json", os.mkfifo), "is not a regular file"),
    "a tokenizer that is a pipe": (replaced("tokenizer.json", os.mkfifo), "is not a regular file"),
    "a tokenizer of zeros": (
        replaced("tokenizer.json", lambda path: path.symlink_to("/dev/zero")),
        "is not a regular file",
    ),
    "a tokenizer of 1 TB": (replaced("tokenizer.json", sparse(10**12)), "MiB, more than 100"),
    "code": (code, "m'"),
    "code of the hub": (
        config(_attn_implementation="someone/kernel"),
        "_attn_implementation='someone/kernel', which is code on the hub",
    ),
    "other weights": (config(transformers_weights="b.safetensors"), "has transformers_weights="),
    "another base": (
        text("adapter_config.json", '{"base_model_name_or_path": "someone/else"}'),
        "has an adapter_config.json",
    ),
    "pickled weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pickled weights, which are never opened",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "half the weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 200_000),
        "model.safetensors is damaged",
    ),
    "a header of 2**60 bytes": (
        text("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        "eader",
    ),
    "a header of 90 MB": (
        text("model.safetensors", struct.pack("<Q", 90_000_000) + b" " * 90_000_000),
        "eader",
    ),
    "weights that are a pipe": (
        replaced("model.safetensors", os.mkfifo),
        "no model.safetensors",
    ),
    "a tensor of another size": (
        weights(lambda t: t.update({"model.norm.weight": torch.ones(63)})),
        "'model.norm.weight' has shape [63], but its config.json needs [64]",
    ),
    "integers for weights": (
        weights(lambda t: t.update({"lm_head.weight": torch.ones(258, 64, dtype=torch.int64)})),
        "'lm_head.weight' has type I64",
    ),
    "integer shards": (index({"weight_map": {"a": 1}}), "has 1 for 'a': it must name"),
    "shards elsewhere": (
        index({"weight_map": {"a": "../../../etc/passwd"}}),
        "has '../../../etc/passwd' for 'a'",
    ),
    "pickled shards": (index({"weight_map": {"a": "pytorch_model.bin"}}), "a .safetensors file"),
    "an absent shard": (index({"weight_map": {"a": "b.safetensors"}}), "b.safetensors does not"),
    "no shards": (index({"weight_map": {}}), "index.json is damaged"),
    "a list of shards": (index({"weight_map": ["a"]}), "index.json is damaged"),
    "a list for an index": (index([1]), "index.json holds a list"),
    "a broken tokenizer": (text("tokenizer.json", '{"version"'), "no usable tokenizer"),
    "an empty tokenizer": (text("tokenizer.json", "{}"), "no usable tokenizer"),
    "a tokenizer that panics": (
        tokenizer(lambda t: t.update(normalizer=PANIC)),
        "no usable tokenizer",
    ),
    "random tokens": (
        tokenizer(lambda t: t["model"].update(dropout=0.5)),
        "tokenizer.json has dropout=0.5",
    ),
    "more tokens than embeddings": (
        tokenizer(lambda t: t["model"]["vocab"].update(zz=258)),
        "its tokenizer has token 258, but the model has 258 embeddings",
    ),
    "a token of 2**31": (
        tokenizer(lambda t: t["model"]["vocab"].update(zz=2**31)),
        "its tokenizer has token 2147483648",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model(refused: Refused, model: Path, case: str) -> None:
    change, says = MODELS[case]
    change(model)
    refused("train model=hf model.path=m", says, seconds=BOMB)
    assert not (model / "ran").exists()
    assert not (model.parent / "ran").exists()


LOADED: dict[str, tuple[Change, str]] = {
    "a transposed tensor": (
        weights(lambda t: t.update({"lm_head.weight": torch.ones(64, 258)})),
        "'lm_head.weight' has shape [64, 258]",
    ),
    "a missing tensor": (weights(lambda t: t.pop("model.norm.weight")), "(model.norm.weight, ...)"),
    "NaN weights": (
        weights(lambda t: t["model.norm.weight"].fill_(float("nan"))),
        "computes NaN logits",
    ),
    "a NaN in the config": (config(rms_norm_eps=float("nan")), "computes NaN logits"),
}
"""What is seen only when the weights are loaded."""


@pytest.mark.parametrize("case", LOADED)
def test_weights_that_load(run: Callable[..., Any], model: Path, case: str) -> None:
    change, says = LOADED[case]
    change(model)
    ended = run("train model=hf model.path=m", seconds=BOMB)
    assert ended.code == 2
    assert says in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
