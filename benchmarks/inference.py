"""What an adapter costs at inference: the base, merged adapters and unmerged adapters.

A merged adapter is ``W0 + gamma B A``, a matrix with the shape of W0. At any rank and under any
rule it costs what the base costs. An unmerged adapter adds two products to each layer,
``2 N R (D + O)`` FLOPs and ``R (D + O)`` weights, as PEFT's forward pass does. ``N``: tokens;
``D``, ``O``: in and out features; ``R``: rank.

Three things make the times comparable. The order is drawn anew in each round, and the base is timed
several times in it. Each turn starts with passes that are not timed. The control, which is the base
under another name, shows how much of a difference is noise.
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from study.adapters import AdapterSpec, dense_weight, features
from study.adapters.bank import initial_pair
from study.adapters.inits import generator_for
from study.config import ModelConfig
from study.errors import StudyError
from study.models import FrozenBase, describe, load_base
from study.training.devices import choose_device, describe_device
from study.vocabulary.scaling import gamma
from study.vocabulary.sources import MODELS

BASES = 3
"""Turns of the base in a round. All other times are compared with their mean."""
TIMED = {"prefill": 2, "decode": 6}
"""Timed passes in a turn. A prefill reads all tokens, a decode one."""
COLUMNS = ("round", "form", "scaling", "rank", "phase", "tokens", "seconds", "weights_gb")
ALPHA = 16.0
_B_STD = 1e-3  # small beside the weights, so that activations stay as in the base

Form = tuple[str, str, int]
"""``base``, ``control``, ``merged`` or ``unmerged``; the rule and the rank of the last two."""


class Unmerged(nn.Module):
    """A linear layer and its adapter: ``W0 x + gamma B (A x)``. ``B_OR`` is stored transposed."""

    def __init__(self, base: nn.Module, A_RD: Tensor, B_RO: Tensor, gamma: float) -> None:
        super().__init__()
        self.base, self.gamma = base, gamma
        self.A_RD, self.B_RO = (
            nn.Parameter(factor, requires_grad=False) for factor in (A_RD, B_RO)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.A_RD.mT) @ self.B_RO * self.gamma


class Factors:
    """An adapter of the highest rank on every block linear. Lower ranks use its first rows."""

    def __init__(self, base: FrozenBase, rank: int) -> None:
        self.linears = {path: base.model.get_submodule(path) for path in base.card.linears}
        if not all(dense_weight(linear) is not None for linear in self.linears.values()):
            raise StudyError(
                f"{base.card.name} is quantised, and an adapter cannot be merged into quantised "
                "weights: choose a model in full precision"
            )
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for path, linear in self.linears.items():
            d, o = features(linear)
            A_RD, _ = initial_pair(AdapterSpec(rank, 1.0), path, d, o)
            B_RO = torch.empty(rank, o).normal_(std=_B_STD, generator=generator_for(0, f"{path}/B"))
            like: Any = linear.weight
            self.pairs[path] = (A_RD.to(like), B_RO.to(like))

    def modules(self, form: Form) -> dict[str, nn.Module]:
        """The module that replaces each linear layer, by path.

        Every form copies its weights: reading a memory-mapped file takes another time than reading
        allocated memory.
        """
        name, rule, rank = form
        found: dict[str, nn.Module] = {}
        for path, linear in self.linears.items():
            weight: Any = linear.weight
            twin = copy.copy(linear)  # shallow: the copy shares hooks and bias
            found[path] = twin
            if name == "merged":
                A_RD, B_RO = (factor[:rank] for factor in self.pairs[path])
                delta_OD = (B_RO.mT @ A_RD) * gamma(rule, ALPHA, rank)
                merged = weight + (delta_OD if isinstance(linear, nn.Linear) else delta_OD.mT)
            else:
                merged = weight.clone()
            frozen = nn.Parameter(merged, requires_grad=False)
            twin._parameters = {**linear._parameters, "weight": frozen}
            if name == "unmerged":
                A_RD, B_RO = (factor[:rank] for factor in self.pairs[path])
                found[path] = Unmerged(twin, A_RD, B_RO, gamma(rule, ALPHA, rank))
        return found


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """``model`` with ``modules`` at their paths; restored on exit."""
    before = {path: model.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)


def run(model: str, *, device: str, precision: str, tokens: int, **options: Any) -> pd.DataFrame:
    """Load ``model`` (``smollm2``, ``tiny``, a folder or a hub name) and :func:`measure` it."""
    known = model in MODELS and not MODELS[model].reads_path
    config = ModelConfig(model) if known else ModelConfig("hf", model)
    card = describe(config)
    if tokens > card.max_length:
        raise StudyError(
            f"{tokens} tokens are more than {card.name} allows: give at most {card.max_length}"
        )
    base = load_base(config, choose_device(device), precision)
    return measure(base, tokens=tokens, **options)


@torch.no_grad()
def measure(
    base: FrozenBase,
    ranks: Sequence[int],
    *,
    rounds: int,
    tokens: int,
    say: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Time every form of ``base``, under both rules at each rank: a row per round, turn and phase.

    Columns: ``round``, ``form``, ``scaling``, ``rank`` (0: none), ``phase``, ``tokens`` of a pass,
    ``seconds`` (the turn's mean), ``weights_gb`` (GiB of the model's tensors), model, precision and
    machine. Memory: the base, a copy of its linears, and the factors of the highest rank.
    """
    factors = Factors(base, max(ranks))
    forms: list[Form] = [*[("base", "", 0)] * BASES, ("control", "", 0)]
    forms += product(("merged", "unmerged"), ("lora", "rslora"), ranks)
    vocabulary = base.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    stream = torch.Generator().manual_seed(0)
    ids_1T = torch.randint(vocabulary, (1, tokens), generator=stream).to(base.device)
    passes = {"prefill": ids_1T, "decode": ids_1T[:, :1]}
    rows = []
    for number in range(rounds):
        for form in random.Random(number).sample(forms, len(forms)):
            with replaced(base.model, factors.modules(form)):
                held = [*base.model.parameters(), *base.model.buffers()]
                weights = sum(tensor.numel() * tensor.element_size() for tensor in held) / 2**30
                for phase, ids in passes.items():
                    seconds = _seconds(base, ids, TIMED[phase])
                    rows.append((number, *form, phase, ids.numel(), seconds, weights))
        say(f"round {number + 1} of {rounds}")
    machine = describe_device(base.device)
    return pd.DataFrame(rows, columns=list(COLUMNS)).assign(
        model=base.card.name,
        precision=str(next(base.model.parameters()).dtype).removeprefix("torch."),
        **{name: machine[name] for name in ("device", "device_name", "threads")},
    )


def next_token(base: FrozenBase, ids_1T: Tensor) -> Tensor:
    """The logits of the token after ``ids_1T``, ``[1, V]``; the head sees the last token only."""
    return base.logits(base.hidden_states(ids_1T)[:, -1])


def _seconds(base: FrozenBase, ids_1T: Tensor, timed: int) -> float:
    """The mean time of ``timed`` passes, after two to warm up."""
    known = {"next_token": next_token, "base": base, "ids_1T": ids_1T}
    timer = Timer("next_token(base, ids_1T)", globals=known, num_threads=torch.get_num_threads())
    return float(timer.timeit(timed).mean)
