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

SHAPES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("shapes.json").read_text())
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
        choices = f"choose from {', '.join(SHAPES)}, or give a config.json"
        raise StudyError(f"model.path={short(path, 200)} is no shape: {choices}")
    found = read_object(file, f"model.path={short(path, 200)}", "give another", 1 << 20)
    if "model_type" not in found:
        raise StudyError(f"model.path={short(path, 200)} has no model_type: give a config.json")
    return Shape(path, json.dumps(found, sort_keys=True))


UnloadedModel = checkpoints.ModelFolder | tiny.TinyModel | Shape
"""A model before its weights are loaded."""


def _small(config: ModelConfig) -> UnloadedModel:
    folder = Path(__file__).parent / "small"
    note = "pretrained on the documentation of Python and of packages"
    return checkpoints.ModelFolder(folder, config.name, "model=small", str(folder), note=note)


def _tiny(config: ModelConfig) -> UnloadedModel:
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
    row = MODELS[config.name]
    if row.reads_path and not config.path:
        raise StudyError(f"model={config.name} needs model.path: give a folder or a hub name")
    if config.path and not (row.reads_path or row.is_packaged):
        why = f"model={config.name} reads no path, but model.path={config.path!r} is given"
        raise StudyError(f"{why}: use model=hf, or remove model.path")
    if config.width is not None and not row.has_width:
        why = f"model.width={config.width}, but model={config.name} has the width of its weights"
        raise StudyError(f"{why}: use model.width=null")
    return FINDERS[config.name](config)
