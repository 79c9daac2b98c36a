"""What an adapter costs at inference: the base, merged adapters and unmerged adapters.

A merged adapter is ``W0 + gamma B A``, a matrix with the shape of W0. At any rank and under any
rule it costs what the base costs. An unmerged adapter of PEFT adds two products to each layer,
``2 N R (D + O)`` FLOPs and ``R (D + O)`` weights. ``N``: tokens; ``D``, ``O``: in and out features;
``R``: rank.

Three things make the times comparable. The order is drawn anew in each round, and the base is timed
several times in it. Each turn starts with passes that are not timed. The control, which is the base
under another name, shows how much of a difference is noise.
"""

import copy
import random
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from study.models import FrozenBase, load_base
from study.training.devices import choose_device

from .training import Row, Size

ROUNDS, TOKENS = 5, 256
"""Of all forms, and of a prefill."""
BASES = 3
"""Turns of the base in a round. All other times are compared with their mean."""
TIMED = {"prefill": 2, "decode": 6}
"""Timed passes in a turn. A prefill reads all tokens, a decode one."""
COLUMNS = ("round", "form", "scaling", "rank", "phase", "tokens", "seconds", "weights_gb")
ALPHA = 16
B_STD = 1e-3
"""Of B: small beside the weights, so that activations stay as in the base."""

Form = tuple[str, str, int]
"""``base``, ``control``, ``merged`` or ``unmerged``; the rule and the rank of the last two."""


def built(base: FrozenBase, form: Form) -> Any:
    """The model of a form, with adapters on every block linear.

    Every form copies its weights: reading a memory-mapped file takes another time than reading
    allocated memory.
    """
    name, rule, rank = form
    model = copy.deepcopy(base.model)
    if name in ("base", "control"):
        return model
    how: Any = {"use_rslora": rule == "rslora", "target_modules": list(base.card.linears)}
    config = LoraConfig(r=rank, lora_alpha=ALPHA, **how)
    adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    for path, weight in adapted.named_parameters():
        if "lora_B" in path:
            nn.init.normal_(weight, std=B_STD)
    return adapted.merge_and_unload() if name == "merged" else adapted


@torch.no_grad()
def rounds(size: Size) -> Iterator[Row]:
    """The suite ``inference``: every form of a model, under both rules at each rank, a row per
    round, turn and phase.

    ``rank``: 0 of the base. ``tokens``: of a pass. ``seconds``: the turn's mean. ``weights_gb``:
    GiB of the model's tensors.
    """
    base = load_base(size.base, choose_device(size.device), size.precision)
    forms: list[Form] = [*[("base", "", 0)] * BASES, ("control", "", 0)]
    forms += product(("merged", "unmerged"), ("lora", "rslora"), size.ranks)
    ids_1T = torch.arange(TOKENS, device=base.device)[None] % base.card.vocabulary
    passes = {"prefill": ids_1T, "decode": ids_1T[:, :1]}
    for number in range(ROUNDS):
        for form in random.Random(number).sample(forms, len(forms)):
            own = built(base, form)
            held = [*own.parameters(), *own.buffers()]
            weights = sum(tensor.numel() * tensor.element_size() for tensor in held) / 2**30
            for phase, ids in passes.items():
                row = number, *form, phase, ids.numel(), _seconds(own, ids, TIMED[phase]), weights
                yield dict(zip(COLUMNS, row, strict=True))


def next_token(model: Any, ids_1T: Tensor) -> Tensor:
    """The logits of the token after ``ids_1T``, ``[1, V]``; the head sees the last token only."""
    return model(input_ids=ids_1T, logits_to_keep=1).logits[:, -1]


def _seconds(model: Any, ids_1T: Tensor, timed: int) -> float:
    """The mean time of ``timed`` passes, after two to warm up."""
    known = {"next_token": next_token, "model": model, "ids_1T": ids_1T}
    timer = Timer("next_token(model, ids_1T)", globals=known, num_threads=torch.get_num_threads())
    return float(timer.timeit(timed).mean)
