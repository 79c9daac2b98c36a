"""The layers and sizes of a model, from its configuration, and what share of them is adapted."""

import math
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from study.errors import StudyError, one_line
from study.models import quantised
from study.models.messages import quiet

WITH_EXPERTS = "+experts"
"""Ends the model's fingerprint in the record of a cell that adapts experts. Earlier cells with the
same targets did not adapt them, so they are other cells."""

_NAMED = 6
"""Names in a line."""


@dataclass(frozen=True)
class Anatomy:
    """The layers and sizes of a model.

    - ``linears``: the module paths of the linear layers in the transformer blocks;
    - ``shapes``: their ``(D, O)``;
    - ``experts``: the paths of the weights of experts in the blocks;
    - ``expert_shapes``: their ``(E, D, O)``, for E experts;
    - ``others``: the other weights in the blocks, such as routers: the number of entries by
      :func:`in_block`. Vectors and biases are left out;
    - ``parameters``: the number of weights of the model;
    - ``vocabulary``: the number of its input embeddings;
    - ``head``: the number of weights of the head, ``d V``, tied to the embeddings or not.
    """

    linears: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    experts: tuple[str, ...]
    expert_shapes: tuple[tuple[int, int, int], ...]
    others: tuple[tuple[str, int], ...]
    parameters: int
    vocabulary: int
    head: int

    @property
    def targets(self) -> tuple[str, ...]:
        """The paths of everything that can have an adapter."""
        return self.linears + self.experts

    @property
    def shapes_by_path(self) -> dict[str, tuple[int, ...]]:
        """The shapes of :attr:`targets`: ``(D, O)``, or ``(E, D, O)`` of experts."""
        return dict(zip(self.targets, self.shapes + self.expert_shapes, strict=True))


def anatomy(config: Any, named: str, quant_bits: int | None) -> Anatomy:
    """The anatomy of the model that a transformers configuration describes, without its weights.

    ``named`` is the model's name in errors. Raises :class:`StudyError` if the configuration is not
    of a causal language model, or if ``quant_bits`` bits can't hold its linear layers.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        linears = {path: model.get_submodule(path) for path in block_linears(model)}
        parameters = sum(weight.numel() for weight in model.parameters())
        experts = _expert_weights(model)
        others = _other_weights(model, {*experts, *(f"{path}.weight" for path in linears)})
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        vocabulary = embeddings.weight.shape[0]
        sizes = tuple(_shape(linear) for linear in linears.values())
        head_size = head.weight.numel() if head else 0
    except Exception as error:  # what a model's constructor raises depends on its family
        raise StudyError(
            f"{named} is not a causal language model of transformers ({one_line(error)}): "
            "choose another model"
        ) from None
    if not linears or not min(map(min, sizes)):
        raise StudyError(
            f"{named} has no linear layers in its blocks ({type(model).__name__}): "
            "choose another model"
        )
    if quant_bits == 4:
        quantised.check_rows(named, linears)
    return Anatomy(
        linears=tuple(linears),
        shapes=sizes,
        experts=tuple(experts),
        expert_shapes=tuple(experts.values()),
        others=others,
        parameters=parameters,
        vocabulary=vocabulary,
        head=head_size,
    )


def block_linears(model: nn.Module) -> tuple[str, ...]:
    """The module paths of every ``nn.Linear`` or ``Conv1D`` in the language model's blocks.

    A block is a module in a numbered list. Heads, embeddings and the layers of a vision tower are
    not part of it, nor are subclasses of ``nn.Linear`` that compute something else, such as the
    router of PhiMoE.
    """
    text = set(_language_model(model).modules())
    return tuple(
        name
        for name, module in model.named_modules()
        if module in text and any(part.isdigit() for part in name.split(".")) and _is_linear(module)
    )


def _language_model(model: Any) -> nn.Module:
    """The part with the embeddings of text: a model may have a vision tower beside it."""
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


def _expert_weights(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    """``(E, D, O)`` of the weights of experts in the language model's blocks, by path.

    Only modules with transformers' experts interface count: their inputs are one row per token.
    Those are ``[E, O, D]``, or ``[E, D, O]`` if the module is transposed.
    """
    text, found = set(_language_model(model).modules()), {}
    for path, module in model.named_modules():
        if module not in text or not hasattr(module, "has_gate"):
            continue
        for name, weight in module.named_parameters(path, recurse=False):
            if weight.ndim == 3 and in_block(name) != name:
                experts, first, second = weight.shape
                sides = (first, second) if module.is_transposed else (second, first)
                found[name] = (experts, *sides)
    return found


def _other_weights(model: nn.Module, adaptable: Set[str]) -> tuple[tuple[str, int], ...]:
    text = {id(weight) for weight in _language_model(model).parameters()}
    sizes: Counter[str] = Counter()
    for path, weight in model.named_parameters():
        name = in_block(path)
        counts = weight.ndim > 1 and name != path and not path.endswith("bias")
        if counts and id(weight) in text and path not in adaptable:
            sizes[name] += weight.numel()
    return tuple(sizes.items())


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
    """The list of blocks that contains all ``layers``, by path, and the index of the first of them.

    None if there is no such list.
    """
    places = [place for place in map(block_of, layers) if place]
    paths = {path for path, _ in places}
    if len(places) < len(layers) or len(paths) != 1:
        return None
    return paths.pop(), min(index for _, index in places)


def _shape(linear: nn.Module) -> tuple[int, int]:
    """``(D, O)``. Conv1D stores its weight as ``[D, O]``, ``nn.Linear`` as ``[O, D]``."""
    first, second = linear.get_parameter("weight").shape
    return (first, second) if isinstance(linear, Conv1D) else (second, first)


@dataclass(frozen=True)
class Coverage:
    """Which block weights have adapters. Vectors (norms, biases) do not count.

    An adapter is a product of two factors beside a linear layer, or beside each expert. Some
    families hold other weights in their blocks: routers, state-space matrices, convolutions.

    - ``share``: of the block weights, from 0 to 1;
    - ``without``: the names of the weights without an adapter, the largest first
      (:func:`in_block`);
    - ``out_of_reach``: whether some of them can have none, so that no targets select them;
    - ``experts``: the paths of the weights of experts that have adapters.
    """

    share: float
    without: tuple[str, ...]
    out_of_reach: bool
    experts: tuple[str, ...] = ()

    @property
    def notice(self) -> str | None:
        """One line for the user; None if targets could select every weight.

        Then the user has chosen what is left out.
        """
        if not self.out_of_reach:
            return None
        percent = math.floor(1000 * self.share) / 10  # rounding down: 100 % would be wrong
        names = ", ".join(self.without[:_NAMED])
        more = len(self.without) - _NAMED
        return (
            f"adapters on {percent:g} % of the block weights; not on: {names}"
            f"{f' and {more} more' if more > 0 else ''}"
        )


def coverage(model: Anatomy, layers: Sequence[str]) -> Coverage:
    """The coverage of adapters on ``layers``, which are among ``model.targets``."""
    without = Counter(dict(model.others))
    adapted, chosen = 0, set(layers)
    for path, shape in model.shapes_by_path.items():
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
