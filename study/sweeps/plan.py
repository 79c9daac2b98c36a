"""What cells will take, before anything is loaded: FLOPs, bytes, seconds; and how many fit through the base at once.

Letters as in :mod:`study.adapters.contraction`. Bytes are those that have to be there at one time while a cell trains:

- the base: its weights, once for all cells of a process;
- a cell's adapters, ``P = R sum(D + O)`` floats, their gradients, its optimizer's state, and, where a probe asks for
  updates, the weights of before the step; in bf16 the adapters' casts; merged layers keep ``D O`` floats each, and
  ``r_align`` and the like as many;
- its activations: ``sum(D + O)`` numbers a token over all linears from the first adapted block up, which is what
  transformers' blocks come to (within a fifth, for Llama, GPT-2, Phi and Qwen).
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from itertools import pairwise

import psutil
import torch
from rich.console import Console
from rich.table import Table

from study.adapters import Contraction, resolve_targets
from study.adapters.contraction import adapter_flops
from study.config import CellConfig, chosen, eval_steps, probe_steps
from study.data import Corpus
from study.errors import StudyError
from study.models import FrozenBase, ModelCard
from study.theory import LAST_STEP
from study.training.loop import train
from study.training.loss import LOGITS
from study.training.run import Run
from study.vocabulary.quantities import ALIGNMENTS, SITES, STATS, UPDATES, USUAL

FLOAT = 4
STATES = {"adamw": 2, "adam": 2, "momentum": 1, "nesterov": 1, "rmsprop": 1, "lion": 1}
"""Numbers of optimizer state per weight; 0 for the others (Adafactor keeps rows and columns)."""
SHARE = {"cpu": 0.8, "cuda": 0.9}
"""Of the free memory: what a process may plan with."""
ACHIEVED = 0.5
"""Of the matmul rate: what a training step comes to; the rest is elementwise work, optimizer and probes."""


@dataclass(frozen=True)
class Estimate:
    """One cell: bytes of the base that it shares and of what is its own, and FLOPs of its whole training."""

    base_bytes: int
    own_bytes: int
    flops: float

    def seconds(self, rate: float) -> float:
        """How long it should take at a matmul rate in FLOP/s."""
        return self.flops / (ACHIEVED * rate)


def estimate(
    config: CellConfig, card: ModelCard, tokens: int, supervised: int, contraction: Contraction
) -> Estimate:
    """What a cell takes whose typical step has ``tokens`` tokens, ``supervised`` of them with a loss."""
    layers = resolve_targets(card.linears, config.adapter.targets)
    shapes = dict(zip(card.linears, card.shapes, strict=True))
    adapted = [shapes[layer] for layer in layers]
    above = [shapes[layer] for layer in card.linears[card.linears.index(layers[0]) :]]
    bits = {"float32": 32, "bf16": 16}[config.precision]
    micro_tokens = math.ceil(tokens / config.train.accumulation)
    wanted = config.probes
    sites = chosen("probes.sites", wanted.sites, SITES)
    stats = chosen("probes.stats", wanted.stats, STATS, USUAL)
    probed = bool(probe_steps(config))

    dense = config.precision == "float32" and config.model.quant_bits is None
    weights = flops = kept = hidden = 0
    for d, o in adapted:
        rank = d if math.isinf(config.adapter.rank) else int(config.adapter.rank)
        form = contraction.choose(d, o, rank) if dense else "factored"
        weights += rank * (d + o)
        flops += adapter_flops(form, tokens, d, o, rank)
        hidden += rank if form == "factored" else 0
        kept += 0 if form == "factored" else d * o
        kept += d * o if probed and set(stats) & set(ALIGNMENTS) else 0
    copies = (
        2
        + STATES.get(config.optimizer.name, 0)
        + (probed and bool({*UPDATES, "adapter_update"} & set(sites)))
    )
    casts = weights if config.precision == "bf16" else 0
    activations = micro_tokens * (sum(d + o for d, o in above) + hidden)
    logits = 3 * FLOAT * LOGITS["cpu"]
    frozen = sum(d * o for d, o in shapes.values())
    forward = 2 * tokens * frozen + 2 * supervised * card.head
    backward = 2 * tokens * sum(d * o for d, o in above) + 2 * supervised * card.head
    again = sum(
        step <= LAST_STEP for step in probe_steps(config)
    )  # forward, for the loss after the update
    passes = config.train.steps + again / 3
    evaluations = len(eval_steps(config)) * config.data.heldout / config.train.batch_size
    return Estimate(
        base_bytes=card.parameters * (config.model.quant_bits or bits) // 8,
        own_bytes=FLOAT * (copies * weights + kept) + (casts + activations) * bits // 8 + logits,
        flops=passes * (forward + backward + flops) + evaluations * forward,
    )


def budget(config: CellConfig, device: torch.device) -> int:
    """Bytes that one process may use: ``pack.memory_gb``, or a share of what the device has free."""
    if config.pack.memory_gb is not None:
        return int(config.pack.memory_gb * 2**30)
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    return int(SHARE[device.type] * free)


def check_fits(config: CellConfig, need: Estimate, label: str) -> None:
    """Raises :class:`StudyError` where ``pack.memory_gb`` is set and one cell alone is beyond it."""
    allowed = config.pack.memory_gb
    total = (need.base_bytes + need.own_bytes) / 2**30
    if allowed is not None and total > allowed:
        raise StudyError(
            f"pack.memory_gb={allowed:g} is too little for the cell {label}, which takes about {total:.1f} GB: give it "
            "as much, or lower adapter.rank, train.batch_size (with train.accumulation) or data.sequence_length"
        )


def fold_sizes(needs: Sequence[Estimate], most: int, allowed: int) -> Iterator[int]:
    """How many neighbouring cells go through the base at once: at most ``most``, and what fits into ``allowed`` bytes.

    One cell always goes: whether it fits is then up to the machine.
    """
    start = 0
    while start < len(needs):
        size, used = 1, needs[start].base_bytes + needs[start].own_bytes
        while (
            size < most
            and start + size < len(needs)
            and used + needs[start + size].own_bytes <= allowed
        ):
            used += needs[start + size].own_bytes
            size += 1
        yield size
        start += size


@dataclass(frozen=True)
class PackPlan:
    """A pack before it runs: the ranks and needs of its cells, in order, and the bytes that it may use."""

    ranks: Sequence[float]
    needs: Sequence[Estimate]
    allowed: int
    device: torch.device


def render_plan(packs: Sequence[PackPlan]) -> str:
    """A table, one line a pack, and what all of them come to one after the other."""
    table = Table(
        "pack",
        "cells",
        "ranks",
        "PFLOP",
        "base GB",
        "largest cell GB",
        "may use GB",
        "about",
        box=None,
    )
    total = 0.0
    for number, pack in enumerate(packs, start=1):
        seconds = sum(need.seconds(matmul_rate(pack.device)) for need in pack.needs)
        total += seconds
        table.add_row(
            str(number),
            str(len(pack.needs)),
            ", ".join(f"{rank:g}" for rank in sorted(set(pack.ranks))),
            f"{sum(need.flops for need in pack.needs) / 1e15:.3g}",
            f"{pack.needs[0].base_bytes / 2**30:.2f}",
            f"{max(need.own_bytes for need in pack.needs) / 2**30:.2f}",
            f"{pack.allowed / 2**30:.1f}",
            str(timedelta(seconds=round(seconds))),
        )
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    rate = matmul_rate(packs[0].device) / 1e9 if packs else 0.0
    lines = [line.rstrip() for line in capture.get().splitlines()]
    lines += [
        f"in all about {timedelta(seconds=round(total))} at half of this device's {rate:.0f} GFLOP/s in products"
    ]
    return "\n".join(lines)


@cache
def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a square float32 product on ``device``, measured once."""
    return measure_matmul_rate(device)


def measure_matmul_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, side: int = 2048
) -> float:
    """FLOP/s of a square product on ``device`` now, the best of five."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds()
    return 2 * side**3 / min(seconds() for _ in range(5))


def fastest_fold(cells: Sequence[CellConfig], base: FrozenBase, corpus: Corpus) -> int:
    """The fold size at which a cell's step takes the least time: 1, 2, 4, ... neighbours, tried for three steps each,
    for as long as doubling pays by 2 % and there are cells and memory for it."""
    best, least = 1, math.inf
    for size in (2**i for i in range(len(cells).bit_length())):
        try:
            took = seconds_per_cell(cells[:size], base, corpus)
        except torch.OutOfMemoryError:
            break
        if took > 0.98 * least:
            break
        best, least = size, took
    return best


def seconds_per_cell(cells: Sequence[CellConfig], base: FrozenBase, corpus: Corpus) -> float:
    """A plain step of ``cells`` folded together, in seconds a cell: the least of three, after one to warm up."""
    plain = [
        replace(
            cell,
            train=replace(cell.train, steps=4, eval_every=0),
            probes=replace(cell.probes, every=None, steps=None),
        )
        for cell in cells
    ]
    times = [
        result.metrics["seconds"]
        for results in train(
            base, corpus, [Run.of(config, corpus, base.device) for config in plain]
        )
        for result in results[:1]
        if result
    ]
    return min(after - before for before, after in pairwise(times[:4])) / len(cells)
