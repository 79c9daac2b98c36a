"""The cost of a cell before it is trained: FLOPs, bytes and seconds, on this machine or on others.

Letters as in :mod:`study.adapters.contraction`. Bytes are those held at one time in training:

- the base: its weights, once for all cells of a process;
- a cell's adapters: ``P = R sum(D + O)`` floats, their gradients and the optimizer's state; the
  weights before the step, if a probe measures updates; in bf16 the adapters' casts; ``D O`` floats
  for each merged layer and expert, as many for the weight gradients that alignments need, and for
  the product ``B A`` that a probe multiplies tokens by;
- a cell's activations: ``sum(D + O)`` numbers a token, over all linears from the first adapted
  block up. For Llama, GPT-2, Phi and Qwen this is within a fifth of what transformers keeps. With
  ``train.checkpointing``: the inputs of all blocks, and the activations of one.
"""

import heapq
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch

from study.adapters import Contraction, resolve_targets
from study.adapters.contraction import adapter_flops
from study.config import CellConfig, chosen, eval_steps, probe_steps
from study.errors import StudyError, short, unknown
from study.models import ModelCard
from study.models.card import block_of
from study.reading import all_memory, free_memory
from study.sweeps.cells import Cell
from study.training.fold import LOGITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import ALIGNMENTS, BATCHES, SITES, STATS, UPDATES, USUAL
from study.vocabulary.sources import DEVICES, MATMUL_SHARE, DeviceRow
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

FLOAT = 4
LOGITS_KEPT = 3
"""Logits, their softmax and its gradient exist at the same time."""
MEMORY_SHARE = {"cpu": 0.8, "cuda": 0.9}
"""The share of the free memory that a process may plan with."""
ACHIEVED_SHARE = 0.5
"""The share of the matmul rate that a training step achieves.

The rest of the time goes to elementwise work, the optimizer and probes."""

CELL_BYTES = 20_000
"""Of a record, a configuration and the headers of tables. Measured: 8 to 35 kB."""
PROBE_BYTES = 18
"""Of a row of probes.parquet, if every site had a row in every layer. Measured: 17 to 30."""
STEP_BYTES = 25
"""Of a row of metrics.parquet."""
CHECKPOINTS = 2
"""A new checkpoint is whole before the earlier one is deleted."""


@dataclass(frozen=True)
class Estimate:
    """One cell: bytes of the shared base, bytes of its own, FLOPs of its whole training, and the
    number of its adapters' weights.

    ``logits_bytes``: of the logits of its targets in one pass. A fold computes all logits in chunks
    (:mod:`study.training.fold`), so it never holds more than ``chunk_bytes`` of them.
    ``activation_bytes``: the part of ``own_bytes`` that its activations take.

    For :meth:`divided`: ``sequences`` of one pass; the bytes of ``base_bytes`` and of ``own_bytes``
    that every device holds, the head and the casts; those of one block, which it puts together.
    """

    base_bytes: int
    own_bytes: int
    flops: float
    logits_bytes: int = 0
    chunk_bytes: int = 0
    weights: int = 0
    activation_bytes: int = 0
    sequences: int = 1
    head_bytes: int = 0
    cast_bytes: int = 0
    block_bytes: int = 0

    def divided(self, devices: int) -> "Estimate":
        """What each device takes if ``devices`` train the cell together, as FSDP2 divides it.

        A device has the head whole, and during a step the embedding, which is as large. It puts the
        weights of one block together at a time, and those of the next one. It has whole sequences:
        more devices than sequences take no less time.
        """
        if devices == 1:
            return self
        share = math.ceil(self.sequences / devices) / self.sequences
        divided = self.own_bytes - self.activation_bytes - self.cast_bytes
        activations = math.ceil(share * self.activation_bytes)
        return replace(
            self,
            base_bytes=(self.base_bytes - self.head_bytes) // devices
            + _WHOLE_ENDS * self.head_bytes
            + _BLOCKS_AT_ONCE * self.block_bytes,
            own_bytes=divided // devices + self.cast_bytes + activations,
            activation_bytes=activations,
            logits_bytes=math.ceil(share * self.logits_bytes),
            flops=share * self.flops,
        )

    def seconds(self, rate: float) -> float:
        """The time it should take at a matmul rate in FLOP/s."""
        return self.flops / (ACHIEVED_SHARE * rate)


_WHOLE_ENDS = 2
"""The head and the embedding."""
_BLOCKS_AT_ONCE = 2
"""The block that a device computes, and the one that it fetches."""


@dataclass(frozen=True)
class _AdapterCost:
    """Sums over the adapted layers: adapter weights, FLOPs of a step, floats kept, and ranks."""

    weights: int
    flops: float
    kept: int
    hidden: int

    def __add__(self, other: "_AdapterCost") -> "_AdapterCost":
        sums = (mine + its for mine, its in zip(astuple(self), astuple(other), strict=True))
        return _AdapterCost(*sums)


def fold_bytes(needs: Sequence[Estimate]) -> int:
    """The bytes of a fold: the base once, every cell's own, and one chunk of logits at most."""
    logits = min(sum(need.logits_bytes for need in needs), needs[0].chunk_bytes)
    return needs[0].base_bytes + sum(need.own_bytes for need in needs) + logits


def estimate(
    config: CellConfig,
    card: ModelCard,
    tokens: int,
    supervised: int,
    contraction: Contraction,
    device: str = "cpu",
) -> Estimate:
    """The cost of a cell whose typical step has ``tokens`` tokens, ``supervised`` with a loss.

    ``device``: the type of the device, which decides the size of a chunk of logits.
    """
    layers = resolve_targets(card.targets, config.adapter.targets)
    linears = dict(zip(card.linears, card.shapes, strict=True))
    experts = dict(zip(card.experts, card.expert_shapes, strict=True))
    first = card.linears.index(layers[0]) if layers[0] in linears else 0
    above = [linears[layer] for layer in card.linears[first:]]
    adapted = [linears[layer] for layer in layers if layer in linears]
    adapters = _adapter_cost(config, adapted, tokens, contraction)
    adapters += _expert_cost(config, [experts[layer] for layer in layers if layer in experts])
    blocks = max(1, len({place for place in map(block_of, card.linears) if place}))
    activations = _activation_bytes(config, adapters, above, tokens, blocks)
    bits = config.model.quant_bits or _bits(config)
    casts = adapters.weights * _bits(config) // 8 if config.precision == "bf16" else 0
    if config.train.checkpointing:
        casts //= blocks
    of_blocks = sum(d * o for d, o in card.shapes) * bits // 8 + FLOAT * adapters.weights
    return Estimate(
        base_bytes=card.parameters * bits // 8,
        own_bytes=_state_bytes(config, adapters) + casts + activations,
        flops=_flops(config, card, adapters, above, tokens, supervised),
        sequences=config.train.batch_size,
        head_bytes=card.head * _bits(config) // 8,
        cast_bytes=casts,
        block_bytes=of_blocks // blocks,
        logits_bytes=LOGITS_KEPT * FLOAT * _logits(config, card, supervised),
        chunk_bytes=LOGITS_KEPT * FLOAT * LOGITS[device],
        weights=adapters.weights,
        activation_bytes=activations,
    )


def _adapter_cost(
    config: CellConfig, adapted: list[tuple[int, int]], tokens: int, contraction: Contraction
) -> _AdapterCost:
    dense = config.precision == "float32" and config.model.quant_bits is None
    stats, sites = _probed(config)
    weights = kept = hidden = 0
    flops = 0.0
    for (d, o), layers in Counter(adapted).items():  # a model has few shapes
        rank = d if math.isinf(config.adapter.rank) else int(config.adapter.rank)
        form = contraction.choose(d, o, rank) if dense else "factored"
        weights += layers * rank * (d + o)
        flops += layers * adapter_flops(form, tokens, d, o, rank)
        hidden += layers * rank if form == "factored" else 0
        forms = {form, contraction.choose(d, o, rank, "delta_w" in sites) if dense else form}
        is_lent = {"delta_w", "adapter_in_grad"} <= sites and d * o < rank * (d + o)
        matrices = (forms != {"factored"}) + bool(stats & {*ALIGNMENTS}) + is_lent
        kept += layers * d * o * matrices
    return _AdapterCost(weights, flops, kept, hidden)


def _probed(config: CellConfig) -> tuple[set[str], set[str]]:
    """The statistics and the sites that probes measure; none without a probed step."""
    if not probe_steps(config):
        return set(), set()
    stats = chosen("probes.stats", config.probes.stats, STATS, USUAL)
    return set(stats), set(chosen("probes.sites", config.probes.sites, SITES))


def _expert_cost(config: CellConfig, adapted: list[tuple[int, int, int]]) -> _AdapterCost:
    """Of adapters on experts: every pass merges their weights, and keeps them for its gradients."""
    rank, passes = int(config.adapter.rank) if adapted else 0, config.train.accumulation
    weights = sum(e * rank * (d + o) for e, d, o in adapted)
    merged = sum(e * d * o for e, d, o in adapted)
    return _AdapterCost(weights, 6.0 * passes * rank * merged, merged, 0)


def _state_bytes(config: CellConfig, adapters: _AdapterCost) -> int:
    """Of adapters, their gradients, the optimizer's state, and what merging and probes keep."""
    updates = bool({*UPDATES, "adapter_update"} & _probed(config)[1])
    copies = 2 + OPTIMIZERS[config.optimizer.name].states + updates
    return FLOAT * (copies * adapters.weights + adapters.kept)


def _activation_bytes(
    config: CellConfig,
    adapters: _AdapterCost,
    above: list[tuple[int, int]],
    tokens: int,
    blocks: int,
) -> int:
    micro_tokens = math.ceil(tokens / config.train.accumulation)
    a_token = sum(d + o for d, o in above) + adapters.hidden
    if config.train.checkpointing:
        a_token = a_token // blocks + blocks * above[0][0]  # a block reads the hidden states
    return micro_tokens * a_token * _bits(config) // 8


def _logits(config: CellConfig, card: ModelCard, supervised: int) -> int:
    """The number of logits of a cell in one pass.

    The head's width is that of the first linear layer, which reads the hidden states.
    """
    vocabulary = card.head // card.shapes[0][0]
    return math.ceil(supervised / config.train.accumulation) * vocabulary


def _flops(
    config: CellConfig,
    card: ModelCard,
    adapters: _AdapterCost,
    above: list[tuple[int, int]],
    tokens: int,
    supervised: int,
) -> float:
    of_blocks = 2 * tokens * sum(d * o for d, o in card.shapes)
    forward = of_blocks + 2 * supervised * card.head
    backward = 2 * tokens * sum(d * o for d, o in above) + 2 * supervised * card.head
    losses_after = sum(step <= LAST_PREDICTED_STEP for step in probe_steps(config))
    passes = config.train.steps + losses_after / 3  # a loss after an update is one forward pass
    evaluated = len(eval_steps(config)) * config.data.heldout / config.train.batch_size
    again = config.train.steps if config.train.checkpointing else 0
    return (
        passes * (forward + backward + adapters.flops)
        + again * (of_blocks + adapters.flops / 3)
        + evaluated * forward
    )


def _bits(config: CellConfig) -> int:
    return {"float32": 32, "bf16": 16}[config.precision]


def memory_budget(config: CellConfig, device: torch.device, held: int = 0) -> int:
    """Bytes that one process may use, its base included: ``pack.memory_gb``, or a share of what is
    free.

    ``held``: bytes of the base that this process holds already. They are not free, and a fold's
    estimate counts them.
    """
    if config.pack.memory_gb is not None:
        return int(config.pack.memory_gb * 2**30)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return int(MEMORY_SHARE[device.type] * (free + held))


def check_possible(
    config: CellConfig, card: ModelCard, device: torch.device, devices: int = 1
) -> None:
    """Raises :class:`StudyError` if a cell can't fit into the memory of ``devices`` such devices.

    Its adapters, their optimizer, and activations of one token a sequence are counted. This needs
    no data, so a batch that is too large is refused before it is built.
    """
    sequences = config.train.batch_size * config.train.accumulation
    need = estimate(config, card, sequences, sequences, Contraction(), device.type)
    least = need.divided(devices).own_bytes
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).total_memory
    else:
        most = all_memory()
    if least > most:
        raise StudyError(
            f"adapter.rank={config.adapter.rank} and train.batch_size={config.train.batch_size} "
            f"take at least {least / 2**30:.3g} GiB, and there are {most / 2**30:.3g} GiB of "
            "memory: lower them"
        )


def check_fits(config: CellConfig, need: Estimate, label: str) -> None:
    """Raises :class:`StudyError` if ``pack.memory_gb`` is too little for this cell alone."""
    allowed = config.pack.memory_gb
    total = fold_bytes([need]) / 2**30
    if allowed is not None and total > allowed:
        raise StudyError(
            f"pack.memory_gb={allowed:g} is too little for the cell {label}, which takes about "
            f"{total:.2g} GB: raise it, or lower adapter.rank, train.batch_size (with "
            "train.accumulation) or data.sequence_length"
        )


# Devices that need not be here. Nothing is read and nothing is measured: every sequence counts as
# full and every token as a target, so FLOPs and bytes are upper bounds for shorter rows.


@dataclass(frozen=True)
class Fleet:
    """``count`` GPUs of one kind, none of which need be in this machine."""

    count: int
    name: str

    @property
    def row(self) -> DeviceRow:
        """What its maker says of one of them."""
        return DEVICES[self.name]

    @property
    def memory(self) -> int:
        """Bytes of one device."""
        return int(self.row.gib * 2**30)

    def rate(self, precision: str) -> float:
        """FLOP/s of a large product on one device. An assumption, not a measurement."""
        peak = {"bf16": self.row.bf16, "float32": self.row.float32}[precision]
        return MATMUL_SHARE * peak * 1e12


def fleet(text: str) -> Fleet:
    """What ``--plan=8xh100`` or ``--plan=h100`` names.

    Raises :class:`StudyError` for anything else.
    """
    found = re.fullmatch(r"(?:([1-9]\d{0,5})x)?(\w+)", text)
    if found is None:
        raise StudyError(f"--plan={short(text)}: give a number of devices, such as 8xh100")
    if found[2] not in DEVICES:
        raise unknown("device of --plan", found[2], DEVICES)
    return Fleet(int(found[1] or 1), found[2])


@dataclass(frozen=True)
class CellPrice:
    """One cell: its estimate, the least number of devices that hold it, and its time on them.

    ``devices``: None if no number of devices holds it. ``part``: the share of each of them, or the
    whole estimate. ``seconds``: on all of them together.
    """

    cell: Cell
    need: Estimate
    devices: int | None
    part: Estimate
    seconds: float


@dataclass(frozen=True)
class DiskPrice:
    """Bytes on disk: of the tables and records of all cells, of the adapters that are kept, and of
    the checkpoints of the largest cell while it trains.
    """

    tables: int
    adapters: int
    checkpoints: int


def cell_price(cell: Cell, devices: Fleet) -> CellPrice:
    """The price of a cell on one kind of device."""
    need = full_estimate(cell.config, cell.card)
    count = least_devices(need, MEMORY_SHARE["cuda"] * devices.memory)
    part = need.divided(count or 1)
    seconds = part.seconds(devices.rate(cell.config.precision))
    return CellPrice(cell, need, count, part, seconds)


def full_estimate(config: CellConfig, card: ModelCard, device: str = "cuda") -> Estimate:
    """The estimate of a cell whose sequences are all full and all targets."""
    tokens = config.train.batch_size * config.train.accumulation * config.data.sequence_length
    contraction = Contraction(config.adapter.contraction, tokens)
    return estimate(config, card, tokens, tokens, contraction, device)


def least_devices(need: Estimate, memory: float) -> int | None:
    """The least power of two of devices with ``memory`` bytes each that hold a cell.

    None if 4096 don't: some of it is whole on every device.
    """
    counts = (2**power for power in range(13))
    return next((n for n in counts if fold_bytes([need.divided(n)]) <= memory), None)


def makespan(jobs: Sequence[tuple[int, float]], devices: int) -> float:
    """Seconds until all jobs have ended, if the longest one starts first.

    ``jobs``: pairs of the devices that a job takes, and its seconds on them. A job that takes more
    than there are is not counted.
    """
    free = [0.0] * devices
    for wanted, seconds in sorted(jobs, key=lambda job: -job[1]):
        if wanted <= devices:
            ends = max(heapq.heappop(free) for _ in range(wanted)) + seconds
            for _ in range(wanted):
                heapq.heappush(free, ends)
    return max(free)


def disk_price(cells: Sequence[Cell]) -> DiskPrice:
    """What the cells of a sweep leave on disk."""
    kept = sum(_weights(cell) * FLOAT for cell in cells if cell.config.train.save_adapter)
    states = {cell.id: 1 + OPTIMIZERS[cell.config.optimizer.name].states for cell in cells}
    largest = max((FLOAT * states[c.id] * _weights(c) for c in cells if _saves(c)), default=0)
    return DiskPrice(sum(map(_table_bytes, cells)), kept, CHECKPOINTS * largest)


def _saves(cell: Cell) -> bool:
    return cell.config.checkpoint.every is not None


def _weights(cell: Cell) -> int:
    return full_estimate(cell.config, cell.card).weights


def _table_bytes(cell: Cell) -> int:
    config = cell.config
    layers = 1 + len(resolve_targets(cell.card.targets, config.adapter.targets))
    sites = len(chosen("probes.sites", config.probes.sites, SITES))
    batches = len(chosen("probes.batch", config.probes.batch, BATCHES))
    rows = len(probe_steps(config)) * layers * sites * batches
    return CELL_BYTES + PROBE_BYTES * rows + math.ceil(STEP_BYTES * config.train.steps)
