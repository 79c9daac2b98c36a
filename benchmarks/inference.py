"""What an adapter costs at inference: the base, merged adapters and unmerged adapters.

A merged adapter is ``W0 + gamma B A``, a matrix with the shape of W0. At any rank and under any
rule it costs what the base costs. An unmerged adapter adds two products to each layer,
``2 N R (D + O)`` FLOPs and ``R (D + O)`` weights, as PEFT's forward pass does. ``N``: tokens;
``D``, ``O``: in and out features; ``R``: rank.

Three things make the times comparable. The order is drawn anew in each round, and the base is timed
several times in it. Each turn starts with a pass that is not timed. The control, which is the base
under another name, shows how much of a difference is noise.
"""

import copy
import random
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
"""Timed passes in a turn; their median counts. A prefill reads all tokens, a decode one."""
COLUMNS = (
    *("round", "form", "scaling", "rank", "phase", "tokens"),
    *("seconds", "weights_gb", "peak_gb"),
)
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
    """An adapter of the highest rank on every block linear. Lower ranks use its first rows.

    Raises :class:`StudyError` for a quantised base.
    """

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


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were created inside; ``peak`` is the maximum.

    It counts the tensors themselves, on any device. What an allocator rounds up or keeps for later
    is not counted. Tensors of ``known`` and views of them were not created inside.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        # Held, so that no other storage gets their ids.
        self._held = [tensor.untyped_storage() for tensor in known]
        self._known = {id(storage) for storage in self._held}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and id(storage) not in self._known:
                self._known.add(id(storage))
                self._now += storage.nbytes()
                weakref.finalize(storage, self._free, id(storage), storage.nbytes())
        self.peak = max(self.peak, self._now)
        return out

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def run(model: str, *, device: str, precision: str, tokens: int, **options: Any) -> pd.DataFrame:
    """Load ``model`` (``smollm2``, ``tiny``, a folder or a hub name) and :func:`measure` it.

    Raises :class:`StudyError` for a missing model, and for more ``tokens`` than it takes.
    """
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
    ``seconds`` (the turn's median), ``weights_gb`` (GiB of the model's tensors), ``peak_gb`` (the
    same and the most that a pass holds at once), model, precision and machine.

    Memory: the base, a copy of its linears (two for a moment), and the factors of the highest rank.
    Raises :class:`StudyError` for a quantised base.
    """
    factors = Factors(base, max(ranks))
    forms: list[Form] = [*[("base", "", 0)] * BASES, ("control", "", 0)]
    forms += product(("merged", "unmerged"), ("lora", "rslora"), ranks)
    vocabulary = base.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    stream = torch.Generator().manual_seed(0)
    ids_1T = torch.randint(vocabulary, (1, tokens), generator=stream).to(base.device)
    passes = {"prefill": ids_1T, "decode": ids_1T[:, :1]}
    memory: dict[tuple[Form, str], tuple[float, float]] = {}
    rows = []
    for number in range(rounds):
        for form in random.Random(number).sample(forms, len(forms)):
            with replaced(base.model, factors.modules(form)):
                for phase, ids in passes.items():
                    if (form, phase) not in memory:
                        memory[form, phase] = _gigabytes(base, ids)
                    turn = (number, *form, phase, ids.numel())
                    rows.append((*turn, _seconds(base, ids, TIMED[phase]), *memory[form, phase]))
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
    """The median time of ``timed`` passes, after one to warm up."""
    wait = torch.cuda.synchronize if base.device.type == "cuda" else lambda: None
    times = []
    for _ in range(timed + 1):
        wait()
        began = time.perf_counter()
        next_token(base, ids_1T)
        wait()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _gigabytes(base: FrozenBase, ids_1T: Tensor) -> tuple[float, float]:
    """GiB of the model's own tensors, and the peak of those and a pass's tensors together."""
    held = [*base.model.parameters(), *base.model.buffers()]
    own = sum(tensor.numel() * tensor.element_size() for tensor in held)
    with LiveBytes([*held, ids_1T]) as live:
        next_token(base, ids_1T)
    return own / 2**30, (own + live.peak) / 2**30
