"""The layers and sizes of a model, from its configuration alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from study.errors import StudyError
from study.models import quantised
from study.models.quiet import quiet, quoted


@dataclass(frozen=True)
class Anatomy:
    """The layers and sizes of a model.

    - ``linears``: the module paths of the linear layers in the transformer blocks;
    - ``shapes``: their ``(D, O)``;
    - ``parameters``: the number of weights of the model;
    - ``head``: the number of weights of the head, ``d V``, tied to the embeddings or not.
    """

    linears: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    parameters: int
    head: int


def anatomy(config: Any, named: str, quant_bits: int | None = None) -> Anatomy:
    """The anatomy of the model that a transformers configuration describes, without its weights.

    ``named`` is the model's name in errors. Raises :class:`StudyError` if the configuration is not
    of a causal language model, or if ``quant_bits`` bits can't hold its linear layers.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # what a model's constructor raises depends on its family
        raise StudyError(
            f"{named} is not a causal language model of transformers ({quoted(error)}): "
            "choose another model"
        ) from None
    linears = {path: model.get_submodule(path) for path in block_linears(model)}
    if not linears:
        raise StudyError(
            f"{named} has no linear layers in its blocks ({type(model).__name__}): "
            "choose another model"
        )
    if quant_bits == 4:
        quantised.check_rows(named, linears)
    head = model.get_output_embeddings()
    return Anatomy(
        linears=tuple(linears),
        shapes=tuple(_shape(linear) for linear in linears.values()),
        parameters=sum(p.numel() for p in model.parameters()),
        head=head.weight.numel() if head else 0,
    )


def block_linears(model: nn.Module) -> tuple[str, ...]:
    """The module paths of every ``nn.Linear`` or ``Conv1D`` in the language model's blocks.

    A block is a module in a numbered list. Heads, embeddings and the layers of a vision tower are
    not part of it.
    """
    text = set(model.get_decoder().modules())  # type: ignore[operator]
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module in text
        and any(part.isdigit() for part in name.split("."))
    )


def _shape(linear: nn.Module) -> tuple[int, int]:
    """``(D, O)``. Conv1D stores its weight as ``[D, O]``, ``nn.Linear`` as ``[O, D]``."""
    first, second = linear.get_parameter("weight").shape
    return (first, second) if isinstance(linear, Conv1D) else (second, first)
