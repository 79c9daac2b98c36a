"""The base models: one function for each row of :data:`study.vocabulary.sources.MODELS`.

``model=shape`` is a model's configuration without its weights, for ``study train --plan``:
``model.path`` is one of :data:`SHAPES`, or a file ``config.json`` of transformers, or its folder.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from study.config import ModelConfig
from study.errors import StudyError, short
from study.models import checkpoints, packaged, tiny
from study.models.messages import failing
from study.reading import read_object
from study.vocabulary.sources import MODELS


def _llama_shape(*sizes: int, **others: int) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    named = dict(zip(names, sizes, strict=True))
    return {"model_type": "llama", **named, "tie_word_embeddings": False, **others}


_LLAMA_3 = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072}

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama_shape(4096, 11008, 32, 32, vocab_size=32000, max_position_embeddings=4096),
    "llama-3.1-8b": _llama_shape(4096, 14336, 32, 32, **_LLAMA_3),
    "llama-3.1-70b": _llama_shape(8192, 28672, 80, 64, **_LLAMA_3),
}
"""The configurations of models that are often adapted, as they were published."""


@dataclass(frozen=True)
class Shape:
    """A configuration as a model that can be described. ``text``: its JSON. Tokens are bytes."""

    name: str
    text: str
    note: str = "no weights: for plans only"
    where: None = None

    @property
    def named(self) -> str:
        return f"model.path={short(self.name, 200)}"

    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def config(self, quant_bits: int | None = None) -> Any:
        fix = "give the config.json of a causal language model that transformers supports"
        with failing(f"{self.named} can't be used", fix):
            return AutoConfig.for_model(**json.loads(self.text))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tiny.tokenizer()

    def load(self, device: torch.device, dtype: torch.dtype, quant_bits: int | None) -> Any:
        raise StudyError(f"{self.named} has no weights")


def find_shape(path: str) -> Shape:
    if path in SHAPES:
        return Shape(path, json.dumps(SHAPES[path], sort_keys=True))
    file = Path(path).expanduser()
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise StudyError(
            f"model.path={short(path, 200)} is no shape: choose from {', '.join(SHAPES)}, or give "
            "a config.json"
        )
    found = read_object(file, f"model.path={short(path, 200)}", "give another", 1 << 20)
    if "model_type" not in found:
        raise StudyError(f"model.path={short(path, 200)} has no model_type: give a config.json")
    return Shape(path, json.dumps(found, sort_keys=True))


UnloadedModel = checkpoints.ModelFolder | tiny.TinyModel | Shape
"""A model before its weights are loaded."""


def _without_path(config: ModelConfig) -> None:
    if config.path:
        raise StudyError(
            f"model={config.name} reads no path, but model.path={config.path!r} is given: "
            "use model=hf, or remove model.path"
        )


def _small(config: ModelConfig) -> UnloadedModel:
    _without_path(config)
    folder = Path(__file__).parent / "small"
    note = "pretrained on the documentation of Python and of packages"
    return checkpoints.ModelFolder(folder, config.name, "model=small", str(folder), note=note)


def _tiny(config: ModelConfig) -> UnloadedModel:
    _without_path(config)
    width = tiny.WIDTH if config.width is None else config.width
    if width % tiny.WIDTH_STEP:
        raise StudyError(f"model.width={width} is not a multiple of {tiny.WIDTH_STEP}: give one")
    return tiny.TinyModel(config.name, width)


def _packaged(config: ModelConfig) -> UnloadedModel:
    return checkpoints.find(config.path) if config.path else packaged.checkpoint(config.name)


FINDERS: dict[str, Callable[[ModelConfig], UnloadedModel]] = {
    **dict.fromkeys(packaged.PACKAGES, _packaged),
    "hf": lambda config: checkpoints.find(str(config.path)),
    "shape": lambda config: find_shape(str(config.path)),
    "small": _small,
    "tiny": _tiny,
}
"""The function of every model, by name."""


def find_model(config: ModelConfig) -> UnloadedModel:
    if MODELS[config.name].reads_path and not config.path:
        raise StudyError(
            f"model={config.name} needs model.path: "
            "give a folder, or a hub name such as meta-llama/Llama-3.1-8B-Instruct"
        )
    if config.width is not None and not MODELS[config.name].has_width:
        having = " or ".join(f"model={key}" for key, row in MODELS.items() if row.has_width)
        raise StudyError(
            f"model.width={config.width}, but the width of model={config.name} is that of its "
            f"weights: use {having}, or model.width=null"
        )
    return FINDERS[config.name](config)
