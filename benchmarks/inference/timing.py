"""Time the base, merged adapters and unmerged adapters in turns, in one process.

Three things make the times comparable. The order is drawn anew in each round, and the base is timed
several times in it. Each turn starts with a pass that is not timed. The control, which is the base
under another name, shows how much of a difference is noise.
"""

import random
import time
from collections.abc import Callable, Sequence
from statistics import median

import pandas as pd
import torch
from torch import Tensor

from study.config import DEVICES, PRECISIONS, ModelConfig
from study.errors import StudyError, unknown
from study.models import FrozenBase, describe, load_base
from study.training.devices import choose_device, describe_device
from study.vocabulary.sources import MODELS

from .forms import Factors, Form, replaced
from .memory import LiveBytes

RULES = ("lora", "rslora")
BASES = 3
"""Turns of the base in a round. All other times are compared with their mean."""
TIMED = {"prefill": 2, "decode": 6}
"""Timed passes in a turn; their median counts. A prefill reads all tokens, a decode one."""
COLUMNS = (
    *("round", "form", "scaling", "rank", "phase", "tokens"),
    *("seconds", "weights_gb", "peak_gb"),
)


def run(
    model: str,
    ranks: Sequence[int],
    *,
    rounds: int,
    tokens: int,
    device: str,
    precision: str,
    say: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Load ``model`` (``smollm2``, ``tiny``, a folder or a hub name) and :func:`measure` it.

    Raises :class:`StudyError` before loading it: without ranks, for an unknown device or precision,
    for a missing model, and for more ``tokens`` than it takes.
    """
    known = model in MODELS and not MODELS[model].reads_path
    config = ModelConfig(model) if known else ModelConfig("hf", model)
    if not ranks:
        raise StudyError("no rank to measure: give positive integers such as 4,32,256,2048")
    for what, value, choices in (("device", device, DEVICES), ("precision", precision, PRECISIONS)):
        if value not in choices:
            raise unknown(what, value, choices)
    card = describe(config)
    if tokens > card.max_length:
        raise StudyError(
            f"{tokens} tokens are more than {card.name} allows: give at most {card.max_length}"
        )
    base = load_base(config, choose_device(device), precision)
    return measure(base, ranks, rounds=rounds, tokens=tokens, say=say)


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
    adapted = [
        Form(name, rule, rank)
        for name in ("merged", "unmerged")
        for rule in RULES
        for rank in ranks
    ]
    forms = [*[Form("base")] * BASES, Form("control"), *adapted]
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
                    turn = (number, form.name, form.scaling, form.rank, phase, ids.numel())
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
