"""K adapters on one frozen linear.

A bank computes ``y = W0 x + gamma_k B_k A_k x`` for K cells whose activations arrive stacked along the batch: the rest
of the model sees one batch of ``K * B`` sequences and knows nothing of cells. Letters: ``K`` cells, ``N`` tokens of one
cell (batch times sequence), ``D`` in features, ``O`` out features, ``R`` rank.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from study.adapters.contraction import Contraction, factored, factored_linear, merged, mixed

FACTORED = Contraction()


@dataclass(frozen=True)
class AdapterSpec:
    """One cell's adapter: ``gamma`` is the full multiplier on ``B A``; ``seed`` keys its init and its dropout.

    ``init`` is a name of :data:`study.vocabulary.inits.INITS`. ``rank`` is a whole number wherever factors of that rank are held;
    :mod:`study.adapters.infinite` has banks that hold none, up to ``math.inf``. ``start``: what the layers begin with, by path,
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
    """``(D, O)`` of a frozen linear: ``nn.Linear``, one of its subclasses, or transformers' ``Conv1D``.

    Of a quantised one too, whose packed weight has another shape.
    """
    if hasattr(linear, "in_features"):
        return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]
    conv1d: Any = linear
    d, o = conv1d.weight.shape  # it keeps its weight as [D, O]
    return int(d), int(o)


def dense_weight(linear: nn.Module) -> Tensor | None:
    """The weight of a frozen linear as ``[O, D]``, a view; None where it is quantised or the class is not known.

    A quantised linear's packed weight can be multiplied by, through the linear, and nothing else. Only the very classes
    whose product is known to be ``x W^T + b`` qualify, and none of their subclasses.
    """
    if type(linear) is nn.Linear:
        return linear.weight
    if type(linear) is Conv1D:
        conv1d: Any = linear
        return conv1d.weight.mT  # it keeps its weight as [D, O]
    return None


def generator_for(seed: int, layer: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator keyed by cell seed and layer name: no draw depends on what else is in the pack."""
    key = hashlib.sha256(f"{seed}:{layer}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little", signed=True))


def initial_pair(spec: AdapterSpec, layer: str, d: int, o: int) -> tuple[Tensor, Tensor]:
    """``A: [R, D]``, ``B: [O, R]`` as ``spec.init`` draws them (:mod:`study.vocabulary.inits`), float32 on the CPU.

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
            B = (
                torch.empty(rank, o)
                .uniform_(-1 / math.sqrt(o), 1 / math.sqrt(o), generator=stream)
                .T.contiguous()
            )
        case _:
            raise ValueError(f"no init {spec.init!r}")
    return A, B


class Bucket(nn.Module):
    """Neighbouring cells of one rank, multiplied together: ``A_kRD``, ``B_kOR`` are the registered parameters.

    ``form`` is how: one of :data:`study.adapters.contraction.FORMS`.
    """

    gamma_k11: Tensor

    def __init__(self, drawn: Sequence[LoraPair], form: str) -> None:
        super().__init__()
        A_k, B_k, self.gammas = zip(*drawn, strict=True)
        self.A_kRD, self.B_kOR = nn.Parameter(torch.stack(A_k)), nn.Parameter(torch.stack(B_k))
        self.register_buffer(
            "gamma_k11", torch.tensor(self.gammas).view(-1, 1, 1), persistent=False
        )
        self.form = form
        self._keeps = False
        self._kept: tuple[Tensor, Tensor] | None = None

    def add_to(self, y_kNO: Tensor, x_kND: Tensor) -> Tensor:
        """``y + gamma B A x``."""
        return factored(y_kNO, x_kND, self.A_kRD, self.B_kOR, self.gamma_k11)

    def multiply(self, x_kND: Tensor, W_OD: Tensor) -> Tensor:
        """``x (W + gamma B A)^T``, ``[k, N, O]``, through that weight."""
        V_kOD = self._added_to(W_OD)
        if self.form == "mixed":
            return mixed(x_kND, V_kOD, self.A_kRD, self.B_kOR, self.gamma_k11)
        return torch.bmm(x_kND, V_kOD.mT)

    def _added_to(self, W_OD: Tensor) -> Tensor:
        """``W + gamma B A``, ``[k, O, D]``; in the mixed form no gradient goes through it."""
        if self._kept is not None:
            return self._kept[1]
        with torch.set_grad_enabled(self.form == "merged" and torch.is_grad_enabled()):
            made = merged(W_OD, self.A_kRD, self.B_kOR, self.gamma_k11)
        if not self._keeps:
            return made
        self._kept = made, made.detach().requires_grad_(made.requires_grad)
        return self._kept[1]

    @contextmanager
    def merged_once(self) -> Iterator[None]:
        """See :func:`merged_once`."""
        self._keeps = True
        try:
            yield
            if self._kept is not None and self._kept[1].grad is not None:
                self._kept[0].backward(self._kept[1].grad)
        finally:
            self._keeps, self._kept = False, None


class LoraBank(nn.Module):
    """A frozen linear with the adapters of K cells, ordered by rank.

    ``forward``: ``[K * B, ..., D] -> [K * B, ..., O]``; K = 1 is an ordinary LoRA layer. Adapters are float32 whatever
    the base's precision and are cast where they are used.
    """

    def __init__(
        self,
        base: nn.Module,
        layer: str,
        specs: Sequence[AdapterSpec],
        contraction: Contraction = FACTORED,
    ) -> None:
        super().__init__()
        if [s.rank for s in specs] != sorted(s.rank for s in specs):
            raise ValueError(
                "a bank's cells come ordered by rank: neighbours of one rank are multiplied together"
            )
        self.base = base
        self.layer = layer
        self.specs = tuple(specs)
        self.contraction = contraction
        self.buckets = nn.ModuleList(
            self._bucket(list(group)) for _, group in groupby(specs, key=lambda s: s.rank)
        )
        self.pairs: list[LoraPair] = []
        self._dropout_streams: list[torch.Generator] | None = None

    def _bucket(self, specs: Sequence[AdapterSpec]) -> Bucket:
        d, o = features(self.base)
        drawn = [self.drawn(spec, d, o) for spec in specs]
        # Dropout is on the adapter's input alone, and a merged product has one input.
        W_OD = dense_weight(self.base)
        can_merge = (
            W_OD is not None
            and W_OD.dtype == torch.float32
            and not any(spec.dropout for spec in specs)
        )
        rank = len(
            drawn[0].A_RD
        )  # not the spec's: banks of study.adapters.infinite hold factors of another rank
        return Bucket(drawn, self.contraction.choose(d, o, rank) if can_merge else "factored")

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        """What a cell begins with: the factors, and gamma. Banks of :mod:`study.adapters.infinite` begin with others."""
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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, the pairs' slices too: either alone would hold the memory of both."""
        super().zero_grad(set_to_none)
        for A_RD, B_OR, _ in self.pairs:
            A_RD.grad = B_OR.grad = None

    def dropout_state(self) -> list[Tensor] | None:
        """Where each cell's dropout stream stands; None before the first draw."""
        return (
            None
            if self._dropout_streams is None
            else [stream.get_state() for stream in self._dropout_streams]
        )

    def rewind_dropout(self, state: list[Tensor] | None) -> None:
        """Put the streams back to ``state``: the passes made since, made again, draw the same masks."""
        if state is None or self._dropout_streams is None:
            self._dropout_streams = None
        else:
            for stream, was in zip(self._dropout_streams, state, strict=True):
                stream.set_state(was)

    def train(self, mode: bool = True) -> Self:
        """Dropout on or off. The frozen linear keeps its mode: a quantised one computes otherwise in another."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        x_KND = x.reshape(len(self.specs), -1, x.shape[-1])
        product = {"factored": self._factored, "mixed": self._dense, "merged": self._dense}
        out, first = [], 0
        for form, neighbours in groupby(self._buckets(), key=lambda bucket: bucket.form):
            buckets = list(neighbours)
            cells = slice(first, first := first + sum(len(bucket.gammas) for bucket in buckets))
            out += product[form](buckets, x_KND[cells], cells)
        y_KNO = out[0] if len(out) == 1 else torch.cat(out)
        return y_KNO.view(*x.shape[:-1], y_KNO.shape[-1])

    def _factored(self, buckets: Sequence[Bucket], x_kND: Tensor, cells: slice) -> list[Tensor]:
        """One frozen product for all of ``buckets``, and each adds its own."""
        sizes = [len(bucket.gammas) for bucket in buckets]
        W_OD = dense_weight(self.base)
        if W_OD is not None and not self._drops:
            ends = list(accumulate(sizes, initial=0))
            adapters = [tensor for b in buckets for tensor in (b.A_kRD, b.B_kOR, b.gamma_k11)]
            parts = [slice(*ends) for ends in pairwise(ends)]
            return [factored_linear(x_kND, W_OD, self.base.bias, parts, adapters)]  # type: ignore[arg-type]
        y_kNO = self.base(x_kND)
        # Where autocast made the base's product bf16, the adapter's products are bf16 too.
        x_kND = self._dropped(x_kND, cells).to(y_kNO.dtype)
        return [
            b.add_to(y, x)
            for b, y, x in zip(buckets, y_kNO.split(sizes), x_kND.split(sizes), strict=True)
        ]

    def _dense(self, buckets: Sequence[Bucket], x_kND: Tensor, cells: slice) -> list[Tensor]:
        """One product a bucket, through a weight of each cell's own."""
        W_OD = dense_weight(self.base)
        assert W_OD is not None
        bias: Any = self.base.bias
        sizes = [len(bucket.gammas) for bucket in buckets]
        products = [b.multiply(x, W_OD) for b, x in zip(buckets, x_kND.split(sizes), strict=True)]
        return products if bias is None else [y + bias for y in products]

    @property
    def _drops(self) -> bool:
        """Whether there is dropout now, in any cell."""
        return self.training and any(spec.dropout for spec in self.specs)

    def _buckets(self) -> list[Bucket]:
        return list(self.buckets)  # type: ignore[arg-type]

    def _dropped(self, x_kND: Tensor, cells: slice) -> Tensor:
        """Dropout on the adapters' input as in PEFT, each cell from a stream of its own; none in eval mode."""
        if not self._drops:
            return x_kND
        if self._dropout_streams is None:
            self._dropout_streams = [
                generator_for(s.seed, f"{self.layer}/dropout", x_kND.device) for s in self.specs
            ]
        keep_k = zip(
            (1 - spec.dropout for spec in self.specs[cells]),
            self._dropout_streams[cells],
            strict=True,
        )
        masks = [
            torch.empty_like(x_kND[0]).bernoulli_(keep, generator=g).div_(keep)
            for keep, g in keep_k
        ]
        return x_kND * torch.stack(masks)


@contextmanager
def merged_once(banks: Sequence[LoraBank]) -> Iterator[None]:
    """Around several passes between which no factor changes: weights are merged in the first and kept for the others.

    Gradients gather in the merged weights and are projected on A and B once, on leaving; each kept weight holds its
    ``D O`` floats, and as many for the gradient. Factored adapters are untouched by it.
    """
    with ExitStack() as stack:
        for bank in banks:
            for bucket in bank._buckets():
                stack.enter_context(bucket.merged_once())
        yield
