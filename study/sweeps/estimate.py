"""The cost of a cell before it is trained: FLOPs and bytes.

Letters as in :mod:`study.adapters.contraction`. Bytes are those held at one time in training:

- the base: its weights, once for all cells of a process;
- a cell's adapters: ``P = R sum(D + O)`` floats, their gradients and the optimizer's state. The
  weights before the step, if a probe measures updates. In bf16 the adapters' casts. ``D O`` floats
  for each merged layer and expert, for weight gradients that alignments need, and for the product
  ``B A`` that a probe multiplies tokens by;
- a cell's activations: ``sum(D + O)`` numbers a token, over all linears from the first adapted
  block up, and in bf16 the float32 inputs of two norms a block. For Llama, GPT-2, Phi and Qwen this
  is within a fifth of what transformers keeps. With ``train.checkpointing``: the inputs of all
  blocks, and the activations of one.

FLOPs count training steps and evaluations, operations count steps; both leave out probes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from study.adapters import Contraction, resolve_targets
from study.adapters.contraction import adapter_flops
from study.config import CellConfig, chosen, eval_steps, probe_steps
from study.errors import StudyError
from study.models import ModelCard
from study.models.card import block_of
from study.reading import all_memory, free_memory
from study.training.fold import LOGITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import ALIGNMENTS, SITES, STATS, UPDATES, USUAL

FLOAT = 4
LOGITS_KEPT = 3
"""Logits, their softmax and its gradient exist at the same time."""
MEMORY_SHARE = {"cpu": 0.8, "cuda": 0.9}
"""The share of the free memory that a process may plan with."""
ACHIEVED_SHARE = 0.5
"""The share of the matmul rate that a step achieves. The rest is elementwise work and probes."""
OPERATIONS, LAUNCH = 29, 8e-6
"""Operations of a pass for each adapted layer of Llama, and the seconds in which a host begins
one."""
BEGUN, READ, UPDATED = 2e6, 100, 320
"""What takes a CPU as long as so many FLOPs: to begin an operation, to read a frozen weight in the
forward or backward pass of a fold, and to update a weight of an adapter. They fit ``tiny`` (2.1
times as fast in folds of 16 at rank 256) and SmolLM2 (1.45 times in folds of six at rank 16)."""
GAINS = 0.4
"""The largest share of a step that adapters may take in a fold on a CPU. At rank 256 they take half
of a step of SmolLM2, and a fold is no faster."""
TOKENS, WIDTH = 1000, 600
"""The tokens that fill a pass of a fold on a CPU if the base has that many features. Beyond,
products are no faster, and activations leave the cache. A narrower base takes more tokens."""


@dataclass(frozen=True)
class Estimate:
    """The bytes and the whole training of one cell. ``weights``: the number of its adapters'.

    ``logits_bytes``: of its targets in one pass, of which a fold holds at most ``chunk_bytes``.
    ``activation_bytes`` are a part of ``own_bytes``. On a CPU, ``shared`` is what a fold does once
    for all of its cells, in FLOPs of the same time, and ``fills`` the share of a fold's pass that
    the cell takes. ``gains``: whether a fold saves time (:data:`GAINS`).
    """

    base_bytes: int
    own_bytes: int
    flops: float
    operations: float = 0
    logits_bytes: int = 0
    chunk_bytes: int = 0
    weights: int = 0
    activation_bytes: int = 0
    shared: float = 0.0
    fills: float = 0.0
    gains: bool = False

    def in_fold(self, cells: int) -> "Estimate":
        """The same cell, with its share of what ``cells`` in a fold do once."""
        return replace(self, shared=self.shared / cells, operations=self.operations / cells)

    def seconds(self, rate: float) -> float:
        """The time it should take at a matmul rate in FLOP/s."""
        busy = (self.flops + self.shared) / (ACHIEVED_SHARE * rate)
        return max(busy, LAUNCH * self.operations)


def fold_bytes(needs: Sequence[Estimate]) -> int:
    """The bytes of a fold: the base once, every cell's own, and one chunk of logits at most."""
    logits = min(sum(need.logits_bytes for need in needs), needs[0].chunk_bytes)
    return needs[0].base_bytes + sum(need.own_bytes for need in needs) + logits


class _Adapters(NamedTuple):
    """Sums over the adapted layers. ``kept``: floats. ``hidden``: numbers a token."""

    weights: int
    flops: float
    kept: int
    hidden: int


def estimate(
    config: CellConfig,
    card: ModelCard,
    tokens: int,
    supervised: int,
    contraction: Contraction,
    device: str = "cpu",
) -> Estimate:
    """The cost of a cell whose step has ``tokens`` tokens, ``supervised`` of them with a loss."""
    train, bits = config.train, 16 if config.precision == "bf16" else 32
    layers = resolve_targets(card.shapes, config.adapter.targets)
    linears = card.linears
    first = linears.index(layers[0]) if layers[0] in linears else 0
    above = [card.shapes[path] for path in linears[first:]]
    blocks = max(1, len({place for place in map(block_of, linears) if place}))
    adapters = _adapters(config, [card.shapes[path] for path in layers], tokens, contraction)

    a_token = (sum(d + o for d, o in above) + adapters.hidden) * bits // 8
    hidden = above[0][0]  # the first linear layer of a block reads the hidden states
    if bits < 8 * FLOAT:
        a_token += 2 * FLOAT * hidden * math.ceil(blocks * len(above) / len(linears))
    if train.checkpointing:
        a_token = a_token // blocks + blocks * hidden * bits // 8
    activations = math.ceil(tokens / train.accumulation) * a_token
    casts = adapters.weights * bits // 8 if config.precision == "bf16" else 0
    if train.checkpointing:
        casts //= blocks
    updates = bool({*UPDATES, "adapter_update"} & _probed(config)[1])
    copies = 2 + OPTIMIZERS[config.optimizer.name].states + updates
    states = FLOAT * (copies * adapters.weights + adapters.kept)

    base_bits = config.model.quant_bits or bits
    vocabulary = card.head // hidden
    logits = math.ceil(supervised / train.accumulation) * vocabulary
    operations = OPERATIONS * len(layers) * train.accumulation
    shared = BEGUN * operations + 2 * READ * (card.in_linears + card.head) * train.accumulation
    of_blocks = 2 * tokens * card.in_linears  # FLOPs of a forward pass
    forward = of_blocks + 2 * supervised * card.head
    step = forward + adapters.flops
    step += 2 * tokens * sum(d * o for d, o in above) + 2 * supervised * card.head  # backward
    if train.checkpointing:
        step += of_blocks + adapters.flops / 3
    evaluations = len(eval_steps(config)) * config.data.heldout / train.batch_size
    return Estimate(
        base_bytes=card.parameters * base_bits // 8,
        own_bytes=states + casts + activations,
        flops=train.steps * step + evaluations * forward,
        operations=train.steps * operations,
        logits_bytes=LOGITS_KEPT * FLOAT * logits,
        chunk_bytes=LOGITS_KEPT * FLOAT * LOGITS[device],
        weights=adapters.weights,
        activation_bytes=activations,
        shared=train.steps * shared if device == "cpu" else 0.0,
        gains=adapters.flops + UPDATED * adapters.weights <= GAINS * (step + shared),
        fills=tokens / train.accumulation * min(hidden, WIDTH) / (TOKENS * WIDTH),
    )


def _adapters(
    config: CellConfig, adapted: Sequence[tuple[int, ...]], tokens: int, contraction: Contraction
) -> _Adapters:
    """``adapted``: the shapes of the adapted layers."""
    dense = config.precision == "float32" and config.model.quant_bits is None
    stats, sites = _probed(config)
    weights = kept = hidden = 0
    flops = 0.0
    shapes = Counter(shape for shape in adapted if len(shape) == 2)  # a model has few
    for (d, o), number in shapes.items():
        rank = d if math.isinf(config.adapter.rank) else int(config.adapter.rank)
        form = contraction.choose(d, o, rank) if dense else "factored"
        weights += number * rank * (d + o)
        flops += number * adapter_flops(form, tokens, d, o, rank)
        hidden += number * rank if form == "factored" else 0
        forms = {form, contraction.choose(d, o, rank, "delta_w" in sites) if dense else form}
        is_lent = {"delta_w", "adapter_in_grad"} <= sites and d * o < rank * (d + o)
        matrices = (forms != {"factored"}) + bool(stats & {*ALIGNMENTS}) + is_lent
        matrices += "row_share" in stats and "A" in sites
        kept += number * d * o * matrices
    for e, d, o in (shape for shape in adapted if len(shape) == 3):
        # Every pass merges the weights of experts, and keeps them for its gradients.
        rank = int(config.adapter.rank)
        weights += e * rank * (d + o)
        flops += 6.0 * config.train.accumulation * rank * e * d * o
        kept += e * d * o
    return _Adapters(weights, flops, kept, hidden)


def _probed(config: CellConfig) -> tuple[set[str], set[str]]:
    """The statistics and the sites that probes measure; none without a probed step."""
    if not probe_steps(config):
        return set(), set()
    stats = chosen("probes.stats", config.probes.stats, STATS, USUAL)
    return set(stats), set(chosen("probes.sites", config.probes.sites, SITES))


def full_estimate(config: CellConfig, card: ModelCard, device: str = "cuda") -> Estimate:
    """The estimate of a cell whose sequences are all full and all targets."""
    tokens = config.train.batch_size * config.train.accumulation * config.data.sequence_length
    contraction = Contraction(config.adapter.contraction, tokens)
    return estimate(config, card, tokens, tokens, contraction, device)


def memory_budget(config: CellConfig, device: torch.device, held: int = 0) -> int:
    """Bytes that one process may use. ``held``: those of the base, if it is loaded."""
    if config.pack.memory_gb is not None:
        return int(config.pack.memory_gb * 2**30)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return int(MEMORY_SHARE[device.type] * (free + held))


def check_fits(config: CellConfig, nbytes: int, device: torch.device) -> None:
    """Raises :class:`StudyError` if a cell that takes ``nbytes`` is too large."""
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).total_memory
    else:
        most = all_memory()
    allowed = config.pack.memory_gb or most / 2**30
    if nbytes / 2**30 > allowed:
        bound = f"pack.memory_gb={allowed:g}" if config.pack.memory_gb else f"{allowed:.3g} GiB"
        raise StudyError(
            f"a cell of adapter.rank={config.adapter.rank} takes about {nbytes / 2**30:.3g} GiB, "
            f"more than {bound}: raise pack.memory_gb, or lower adapter.rank, train.batch_size or "
            "data.sequence_length"
        )
