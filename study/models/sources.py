"""The base models: one function for each row of :data:`study.vocabulary.sources.MODELS`."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerFast

from study.config import ModelConfig
from study.errors import StudyError, unknown
from study.models import hf, shape, smollm2, tiny
from study.models.received import Tensor
from study.vocabulary.sources import MODELS


class UnloadedModel(Hashable, Protocol):
    """A model before its weights are loaded.

    - ``name``: in results. ``named``: in errors, for example ``model.path='...'``;
    - ``note``: about the weights, for readers of results; may be empty;
    - ``where``: the argument of ``from_pretrained``, a hub name or a folder; None if there is none.
    """

    @property
    def name(self) -> str: ...

    @property
    def named(self) -> str: ...

    @property
    def note(self) -> str: ...

    @property
    def where(self) -> str | None: ...

    def state(self) -> Hashable:
        """A value that changes when a file of the model changes."""
        ...

    def fingerprint(self) -> str:
        """Identifies the weights."""
        ...

    def config(self, quant_bits: int | None) -> Any:
        """The model's configuration, a transformers ``PretrainedConfig``."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Shape and type of every tensor in its files by name; empty if there are none yet."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The model's tokenizer, a new one on each call."""
        ...

    def load(self, device: torch.device, dtype: torch.dtype, quant_bits: int | None) -> Any:
        """The model with its weights on ``device`` in ``dtype``, the block linears quantised."""
        ...


Finder = Callable[[ModelConfig], UnloadedModel]

FINDERS: dict[str, Finder] = {}
"""The function of every model, by name."""


def finds(name: str) -> Callable[[Finder], Finder]:
    """Register a function as the finder of a model."""

    def register(finder: Finder) -> Finder:
        FINDERS[name] = finder
        return finder

    return register


@finds("smollm2")
def _smollm2(config: ModelConfig) -> UnloadedModel:
    return hf.find(config.path) if config.path else smollm2.checkpoint(config.name)


@finds("hf")
def _hf(config: ModelConfig) -> UnloadedModel:
    return hf.find(str(config.path))


@finds("shape")
def _shape(config: ModelConfig) -> UnloadedModel:
    return shape.find(str(config.path))


@finds("tiny")
def _tiny(config: ModelConfig) -> UnloadedModel:
    if config.path:
        readers = " or ".join(f"model={key}" for key, row in MODELS.items() if row.reads_path)
        raise StudyError(
            f"model={config.name} is made in memory, but model.path={config.path!r} is given: "
            f"use {readers}, or remove model.path"
        )
    width = tiny.WIDTH if config.width is None else config.width
    if width % tiny.WIDTH_STEP:
        raise StudyError(
            f"model.width={width} is not a multiple of {tiny.WIDTH_STEP}: give one, "
            f"such as {tiny.WIDTH_STEP * max(1, round(width / tiny.WIDTH_STEP))}"
        )
    return tiny.TinyModel(config.name, width)


def find_model(config: ModelConfig) -> UnloadedModel:
    """The model that ``config`` names. SmolLM2 is fetched if it is not in the cache.

    Raises :class:`StudyError` for an unknown name, for a path that is missing, does not lead to a
    model, or is not needed, and for a width that the model can't have.
    """
    if config.name not in MODELS:
        raise unknown("model", config.name, MODELS)
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
