"""K adapters on one frozen linear.

A bank computes ``y = W0 x + gamma_k B_k A_k x`` for K cells whose activations arrive stacked along the batch: the rest
of the model sees one batch of ``K * B`` sequences and knows nothing of cells. Letters: ``K`` cells, ``N`` tokens of one
cell (batch times sequence), ``D`` in features, ``O`` out features, ``R`` rank.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from study.adapters.contraction import factored


@dataclass(frozen=True)
class AdapterSpec:
    """One cell's adapter: ``gamma`` is the full multiplier on ``B A``; ``seed`` keys its init and its dropout.

    ``init`` is a name of :data:`study.inits.INITS`. ``rank`` is a whole number wherever factors of that rank are held;
    :mod:`study.limits` has banks that hold none, up to ``math.inf``. ``start``: what the layers begin with, by path,
    where nothing is drawn; each then has its own rank and gamma.
    """

    rank: float
    gamma: float
    seed: int = 0
    dropout: float = 0.0
    init: str = "kaiming"
    start: "Mapping[str, LoraPair] | None" = field(default=None, compare=False, repr=False)


class LoraPair(NamedTuple):
    """One cell's adapter in one layer, as leaf tensors that an optimizer steps: ``A_RD``, ``B_OR``; and its gamma."""

    A_RD: Tensor
    B_OR: Tensor
    gamma: float


def features(linear: nn.Module) -> tuple[int, int]:
    """``(D, O)`` of a frozen linear: ``nn.Linear``, one of its subclasses, or transformers' ``Conv1D``."""
    if hasattr(linear, "in_features"):
        return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]
    conv1d: Any = linear
    d, o = conv1d.weight.shape  # it keeps its weight as [D, O]
    return int(d), int(o)


def generator_for(seed: int, layer: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator keyed by cell seed and layer name: no draw depends on what else is in the pack."""
    key = hashlib.sha256(f"{seed}:{layer}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little", signed=True))


def initial_pair(spec: AdapterSpec, layer: str, d: int, o: int) -> tuple[Tensor, Tensor]:
    """``A: [R, D]``, ``B: [O, R]`` as ``spec.init`` draws them (:mod:`study.inits`), float32 on the CPU.

    ``kaiming`` is PEFT's ``reset_lora_parameters``: Kaiming uniform with a = sqrt(5), so U(-1/sqrt(D), 1/sqrt(D)) (He
    et al. 2015, eq. 14). The draw is keyed by seed and layer and its rows come in order, so an adapter of lower rank is
    the head of one of higher rank: common random numbers across ranks and rules. Raises ``ValueError`` for an unknown
    init.
    """
    if spec.start is not None:
        return spec.start[layer].A_RD, spec.start[layer].B_OR
    stream, rank = generator_for(spec.seed, layer), int(spec.rank)
    A, B = torch.zeros(rank, d), torch.zeros(o, rank)
    match spec.init:
        case "kaiming":
            A.uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=stream)
        case "scaled":
            A.uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=stream).div_(math.sqrt(rank))
        case "gaussian":
            A.normal_(std=1 / math.sqrt(d), generator=stream)
        case "orthogonal":
            nn.init.orthogonal_(A, generator=stream)
        case "init_b":
            B = torch.empty(rank, o).uniform_(-1 / math.sqrt(o), 1 / math.sqrt(o), generator=stream).T.contiguous()
        case _:
            raise ValueError(f"no init {spec.init!r}")
    return A, B


class Bucket(nn.Module):
    """Neighbouring cells of one rank, multiplied together: ``A_kRD``, ``B_kOR`` are the registered parameters."""

    gamma_k11: Tensor

    def __init__(self, drawn: Sequence[LoraPair]) -> None:
        super().__init__()
        A_k, B_k, self.gammas = zip(*drawn, strict=True)
        self.A_kRD, self.B_kOR = nn.Parameter(torch.stack(A_k)), nn.Parameter(torch.stack(B_k))
        self.register_buffer("gamma_k11", torch.tensor(self.gammas).view(-1, 1, 1), persistent=False)

    def add_to(self, y_kNO: Tensor, x_kND: Tensor) -> Tensor:
        """``y + gamma B A x``."""
        return factored(y_kNO, x_kND, self.A_kRD, self.B_kOR, self.gamma_k11)


class LoraBank(nn.Module):
    """A frozen linear with the adapters of K cells, ordered by rank.

    ``forward``: ``[K * B, ..., D] -> [K * B, ..., O]``; K = 1 is an ordinary LoRA layer. Adapters are float32 whatever
    the base's precision and are cast where they are used.
    """

    def __init__(self, base: nn.Module, layer: str, specs: Sequence[AdapterSpec]) -> None:
        super().__init__()
        if [s.rank for s in specs] != sorted(s.rank for s in specs):
            raise ValueError("a bank's cells come ordered by rank: neighbours of one rank are multiplied together")
        self.base = base
        self.layer = layer
        self.specs = tuple(specs)
        d, o = features(base)
        self.buckets = nn.ModuleList(
            Bucket([self.drawn(spec, d, o) for spec in group]) for _, group in groupby(specs, key=lambda s: s.rank)
        )
        self.pairs: list[LoraPair] = []
        self._dropout_streams: list[torch.Generator] | None = None

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        """What a cell begins with: the factors, and gamma. Banks of :mod:`study.limits` begin with others."""
        gamma = spec.gamma if spec.start is None else spec.start[self.layer].gamma
        return LoraPair(*initial_pair(spec, self.layer, d, o), gamma)

    def make_pairs(self) -> None:
        """Make the K per-cell views that optimizers step. Once, after the last ``.to()``: a copy un-aliases them."""
        self.pairs = [
            LoraPair(nn.Parameter(bucket.A_kRD.data[i]), nn.Parameter(bucket.B_kOR.data[i]), gamma)
            for bucket in self._buckets()
            for i, gamma in enumerate(bucket.gammas)
        ]

    def bind_grads(self) -> None:
        """Show each cell's pair its slice of the gradients of the last backward pass."""
        pairs = iter(self.pairs)
        for bucket in self._buckets():
            for i, pair in zip(range(len(bucket.gammas)), pairs, strict=False):
                pair.A_RD.grad = None if bucket.A_kRD.grad is None else bucket.A_kRD.grad[i]
                pair.B_OR.grad = None if bucket.B_kOR.grad is None else bucket.B_kOR.grad[i]

    def dropout_state(self) -> list[Tensor] | None:
        """Where each cell's dropout stream stands; None before the first draw."""
        return None if self._dropout_streams is None else [stream.get_state() for stream in self._dropout_streams]

    def rewind_dropout(self, state: list[Tensor] | None) -> None:
        """Put the streams back to ``state``: the passes made since, made again, draw the same masks."""
        if state is None or self._dropout_streams is None:
            self._dropout_streams = None
        else:
            for stream, was in zip(self._dropout_streams, state, strict=True):
                stream.set_state(was)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        cells = len(self.specs)
        # Where autocast made the base's product bf16, the adapter's products are bf16 too.
        x_KND = self._dropped(x.reshape(cells, -1, x.shape[-1])).to(y.dtype)
        y_KNO = y.reshape(cells, -1, y.shape[-1])
        sizes = [len(bucket.gammas) for bucket in self._buckets()]
        out = [
            b.add_to(y_, x_) for b, y_, x_ in zip(self._buckets(), y_KNO.split(sizes), x_KND.split(sizes), strict=True)
        ]
        return (out[0] if len(out) == 1 else torch.cat(out)).view_as(y)

    def _buckets(self) -> list[Bucket]:
        return list(self.buckets)  # type: ignore[arg-type]

    def _dropped(self, x_KND: Tensor) -> Tensor:
        """Dropout on the adapters' input as in PEFT, each cell from a stream of its own; none in eval mode."""
        if not self.training or not any(spec.dropout for spec in self.specs):
            return x_KND
        if self._dropout_streams is None:
            self._dropout_streams = [generator_for(s.seed, f"{self.layer}/dropout", x_KND.device) for s in self.specs]
        keep_K = zip((1 - spec.dropout for spec in self.specs), self._dropout_streams, strict=True)
        masks = [torch.empty_like(x_KND[0]).bernoulli_(keep, generator=g).div_(keep) for keep, g in keep_K]
        return x_KND * torch.stack(masks)
