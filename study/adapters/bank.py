"""K adapters on one frozen linear.

A bank computes ``y = W0 x + gamma_k B_k A_k x`` for K cells. Their activations arrive stacked along
the batch. The rest of the model sees one batch of ``K * B`` sequences.

Letters: ``K`` cells, ``k`` cells of one rank, ``N`` tokens of one cell (batch times sequence),
``D`` in features, ``O`` out features, ``R`` rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from study.adapters.contraction import Contraction, Factored, Listeners, Merged, Mixed, once_rounded
from study.adapters.inits import DRAWS, generator_for
from study.errors import StudyError
from study.vocabulary.inits import INITS


def dense_weight(linear: nn.Module) -> Tensor | None:
    """The weight of a frozen linear, a view ``[O, D]``; None if quantised or of another class."""
    if type(linear) is nn.Linear:
        return linear.weight
    if type(linear) is Conv1D:
        conv1d: Any = linear
        return conv1d.weight.mT  # stored as [D, O]
    return None


class Bucket(nn.Module):
    """Neighbouring cells, which share their products.

    ``drawn``: A, B and gamma of each cell. ``A_kRD`` and ``B_kOR`` are the registered parameters;
    lower ranks are padded with zeros, whose gradients are zeros too. Padded B is stored as ``[k, R,
    O]``, because fused optimizers need dense parts.

    ``forms``: how products are computed (:mod:`study.adapters.contraction`) in a plain pass, and in
    one whose probe needs ``B A``.
    """

    gamma_k11: Tensor

    def __init__(self, drawn: Sequence[tuple[Tensor, Tensor, float]], *forms: str) -> None:
        super().__init__()
        A_k, B_k, self.gammas = zip(*drawn, strict=True)
        self.cells, self.ranks = len(drawn), [A.shape[-2] for A in A_k]
        if len(set(self.ranks)) == 1:
            A_kRD, B_kOR = torch.stack(A_k), torch.stack(B_k)
        else:
            A_kRD, B_kOR = _padded(A_k), _padded([B_OR.mT for B_OR in B_k]).mT
        self.A_kRD, self.B_kOR = nn.Parameter(A_kRD), nn.Parameter(B_kOR)
        self.register_buffer(
            "gamma_k11", torch.tensor(self.gammas).view(-1, 1, 1), persistent=False
        )
        self.forms = forms or ("factored", "factored")
        self.listeners: Listeners | None = None
        self.needs_product = False
        self._keeps = False
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def form(self) -> str:
        return self.forms[self.needs_product]

    def multiply(self, x_kND: Tensor, W_OD: Tensor) -> Tensor:
        """``x (W + gamma B A)^T``, ``[k, N, O]``, through the merged weight."""
        V_kOD = self._added_to(W_OD)
        if self.form == "mixed":
            return Mixed.apply(x_kND, V_kOD, self.A_kRD, self.B_kOR, self.gamma_k11)
        return torch.bmm(x_kND, V_kOD.mT)

    def _added_to(self, W_OD: Tensor) -> Tensor:
        """``W + gamma B A``, ``[k, O, D]``. In the mixed form no gradient flows through it."""
        if self._kept is not None:
            return self._kept[1]
        with torch.set_grad_enabled(self.form == "merged" and torch.is_grad_enabled()):
            made = Merged.apply(W_OD, self.A_kRD, self.B_kOR, self.gamma_k11, self.listeners)
        if not self._keeps:
            return made
        self._kept = made, made.detach().requires_grad_(made.requires_grad)
        return self._kept[1]

    @contextmanager
    def merged_once(self, W_OD: Tensor | None = None) -> Iterator[None]:
        """See :func:`merged_once`. ``W_OD``: merge now; None: merge in the first pass."""
        self._keeps = True
        try:
            if W_OD is not None and self.form in ("mixed", "merged"):
                self._added_to(W_OD)
            yield
            if self._kept is not None and self._kept[1].grad is not None:
                self._kept[0].backward(self._kept[1].grad)
        finally:
            self._keeps, self._kept = False, None


def own(tensor: Any) -> Any:
    """This process's part of a tensor that FSDP2 has divided; anything else as it is."""
    with torch.no_grad():
        return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def undivided(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 has divided, put together by all processes; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _padded(factors: Sequence[Tensor]) -> Tensor:
    """``[..., r, F]`` of several r in one tensor."""
    most = max(factor.shape[-2] for factor in factors)
    return torch.stack([pad(each, (0, 0, 0, most - each.shape[-2])) for each in factors])


FACTORED = Contraction()
PADDED = 64
"""Ranks up to this share products on a GPU. The host takes 0.1 ms to launch a layer's products for
one more rank. The GPU computes with a rank higher by 64 in less time."""


@dataclass(frozen=True)
class AdapterSpec:
    """How the adapters of one cell are drawn. ``rank``: ``math.inf`` for a bank of
    :mod:`study.adapters.infinite`. ``start``: trained adapters by module path, used instead of a
    draw, with their own ranks and gammas."""

    rank: float
    gamma: float
    seed: int = 0
    dropout: float = 0.0
    init: str = "kaiming"
    start: "Mapping[str, LoraPair] | None" = field(default=None, compare=False, repr=False)


class LoraPair(NamedTuple):
    """One cell's adapter in one layer: the leaf tensors that an optimizer steps, and gamma. On
    experts both factors have a first dimension, the expert."""

    A_RD: Tensor
    B_OR: Tensor
    gamma: float


class Stack(NamedTuple):
    """The adapters of k neighbouring cells, from cell ``first`` on.

    ``gamma_k11`` multiplies ``B A``; ``gammas`` are the same numbers. Ranks lower than R are padded
    with zeros (:class:`Bucket`). ``gradients``: of A and of B, or None. On experts both factors
    have another dimension after the first.
    """

    first: int
    A_kRD: Tensor
    B_kOR: Tensor
    gamma_k11: Tensor
    gammas: Sequence[float]
    ranks: Sequence[int]
    gradients: tuple[Tensor | None, Tensor | None]

    @property
    def cells(self) -> int:
        return len(self.gammas)

    @property
    def each(self) -> slice:
        return slice(self.first, self.first + self.cells)

    def pairs(self) -> list[tuple[int, LoraPair]]:
        each = zip(self.A_kRD, self.B_kOR, self.gammas, self.ranks, strict=True)
        pairs = (LoraPair(A[..., :rank, :], B[..., :rank], gamma) for A, B, gamma, rank in each)
        return list(enumerate(pairs, self.first))


def initial_pair(
    spec: AdapterSpec, layer: str, d: int, o: int, experts: int = 0
) -> tuple[Tensor, Tensor]:
    """``A: [R, D]`` and ``B: [O, R]`` as ``spec.init`` draws them, float32 on the CPU.

    With ``experts``, as many of each, stacked in the first dimension. The draw is keyed by seed,
    layer and rank, so adapters of different ranks are independent, as a fit over ranks assumes.
    Scaling rules and optimizers at one rank share the draw.
    """
    if spec.start is not None:
        return spec.start[layer].A_RD, spec.start[layer].B_OR
    rank, draw = int(spec.rank), DRAWS[spec.init]
    stream = generator_for(spec.seed, f"{layer}/rank {rank}")
    draws_A = INITS[spec.init].drawn == "A"
    drawn = [draw(rank, d if draws_A else o, stream) for _ in range(max(1, experts))]
    factor = torch.stack(drawn) if experts else drawn[0]
    each = factor.shape[:-2]
    if draws_A:
        return factor, torch.zeros(*each, o, rank)
    return torch.zeros(*each, rank, d), factor.mT.contiguous()


class LoraBank(nn.Module):
    """A frozen linear with the adapters of K cells, ordered by rank.

    ``forward``: ``[K * B, ..., D] -> [K * B, ..., O]``. With K = 1 it is an ordinary LoRA layer.
    Adapters are float32 in every precision of
    the base and are cast where they are used.
    """

    def __init__(
        self,
        base: nn.Module,
        layer: str,
        specs: Sequence[AdapterSpec],
        contraction: Contraction = FACTORED,
    ) -> None:
        super().__init__()
        self.base, self.layer, self.contraction = base, layer, contraction
        self.specs = tuple(specs)
        padded = 0 if next(base.parameters()).device.type == "cpu" else PADDED
        self.buckets = nn.ModuleList(
            self._bucket(list(group))
            for _, group in groupby(specs, key=lambda s: max(s.rank, padded))
        )
        self.pairs: list[LoraPair] = []
        self._dropout_streams: list[torch.Generator] | None = None

    @property
    def features(self) -> tuple[int, int]:
        """``(D, O)`` of a frozen linear of torch, or of transformers' ``Conv1D``."""
        base: Any = self.base
        if isinstance(base, Conv1D):
            return tuple(base.weight.shape)  # stored as [D, O]
        return base.in_features, base.out_features

    def _bucket(self, specs: Sequence[AdapterSpec]) -> Bucket:
        d, o = self.features
        drawn = [self.drawn(spec, d, o) for spec in specs]
        W_OD = dense_weight(self.base)
        dtype = None if W_OD is None else W_OD.dtype
        # Dropout acts only on the adapter's input, but a merged product has a single input.
        if dtype == torch.float32 and not any(spec.dropout for spec in specs):
            # The rank of the factors, which in some subclasses is not the rank of the spec.
            shape = d, o, len(drawn[-1].A_RD)
            choose = self.contraction.choose
            return Bucket(drawn, choose(*shape), choose(*shape, needs_product=True))
        if W_OD is not None and dtype == torch.bfloat16 and self.contraction.form != "factored":
            return Bucket(drawn, "concatenated", "concatenated")
        return Bucket(drawn)

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        """The factors and the gamma that a cell starts with. Subclasses hold other factors."""
        gamma = spec.gamma if spec.start is None else spec.start[self.layer].gamma
        return LoraPair(*initial_pair(spec, self.layer, d, o), gamma)

    def make_pairs(self) -> None:
        """Make the per-cell views that optimizers step: of divided factors, this process's part.
        Call it once, after the last ``.to()``, because a copied parameter shares no memory with
        them."""
        self.pairs = [
            LoraPair(nn.Parameter(A_RD), nn.Parameter(B_OR), gamma)
            for stack in self.stacks()
            for _, (A_RD, B_OR, gamma) in stack.pairs()
        ]

    def stacks(self, whole: bool = False) -> list[Stack]:
        """The adapters of all cells, without a gradient: of divided factors, this process's part.
        ``whole``: puts divided factors together, so all processes must call it at the same time."""
        read: Callable[[Tensor], Tensor] = undivided if whole else own
        stacks: list[Stack] = []
        for bucket in self._buckets():
            A_kRD, B_kOR = read(bucket.A_kRD.data), read(bucket.B_kOR.data)
            gamma_k11 = bucket.gamma_k11.view(-1, *[1] * (A_kRD.dim() - 1))
            gradients = own(bucket.A_kRD.grad), own(bucket.B_kOR.grad)
            first = stacks[-1].each.stop if stacks else 0
            rest = bucket.gammas, bucket.ranks, gradients
            stacks.append(Stack(first, A_kRD, B_kOR, gamma_k11, *rest))
        return stacks

    def rank_dimensions(self) -> list[tuple[Tensor, int]]:
        return [
            (factor, factor.dim() - from_end)
            for bucket in self._buckets()
            for factor, from_end in ((bucket.A_kRD, 2), (bucket.B_kOR, 1))
        ]

    def bind_grads(self) -> None:
        """Set the gradients of each cell's pair to its slice of the last backward pass."""
        for stack in self.stacks():
            dA_kRD, dB_kOR = stack.gradients
            for i, (rank, pair) in enumerate(zip(stack.ranks, self.pairs[stack.each], strict=True)):
                pair.A_RD.grad = None if dA_kRD is None else dA_kRD[i][..., :rank, :]
                pair.B_OR.grad = None if dB_kOR is None else dB_kOR[i][..., :rank]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and the slices of the pairs, which would keep their memory alive."""
        super().zero_grad(set_to_none)
        for A_RD, B_OR, _ in self.pairs:
            A_RD.grad = B_OR.grad = None

    def dropout_state(self) -> list[Tensor] | None:
        """The state of each cell's dropout stream; None before the first draw."""
        streams = self._dropout_streams
        return None if streams is None else [stream.get_state() for stream in streams]

    def set_dropout(self, state: Sequence[Tensor | None] | None) -> None:
        """Set each cell's stream to its ``state``: a repeated pass draws the same masks."""
        self._dropout_streams = None
        if state is not None:
            self._dropout_streams = self._new_dropout_streams(self.pairs[0].A_RD.device)
            for stream, was in zip(self._dropout_streams, state, strict=True):
                if was is not None:
                    stream.set_state(was.clone())  # torch crashes on a view into larger memory

    @property
    def weight(self) -> Tensor:
        """``W + gamma B A``, ``[O, D]``, for a model that reads a layer's weight, as Mamba does."""
        W_OD, bucket = dense_weight(self.base), self._buckets()[0]
        is_exact = W_OD is not None and W_OD.dtype == torch.float32
        if W_OD is None or not is_exact or len(self.specs) > 1 or self.specs[0].dropout:
            raise StudyError(
                f"the model reads the weight of {self.layer} itself: leave it out of "
                "adapter.targets, or train in float32 with pack.fold=1 and adapter.dropout=0"
            )
        return Merged.apply(W_OD, bucket.A_kRD, bucket.B_kOR, bucket.gamma_k11, None)[0]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    @contextmanager
    def listening(
        self, listeners_of: Callable[[int], Listeners], needs_products: bool
    ) -> Iterator[None]:
        """Context manager: passes give their intermediate tensors to functions.

        ``listeners_of(first)``: those of the bucket that begins with cell ``first``.
        ``needs_products``: the caller would form ``B A`` itself, so passes merge where that is
        cheaper in all.
        """
        first = 0
        for bucket in self._buckets():
            bucket.listeners, bucket.needs_product = listeners_of(first), needs_products
            first += bucket.cells
        try:
            yield
        finally:
            for bucket in self._buckets():
                bucket.listeners, bucket.needs_product = None, False

    def forward(self, x: Tensor) -> Tensor:
        x_KND = x.reshape(len(self.specs), -1, x.shape[-1])
        out, first = [], 0
        for form, neighbours in groupby(self._buckets(), key=lambda bucket: bucket.form):
            buckets = list(neighbours)
            cells = slice(first, first := first + sum(bucket.cells for bucket in buckets))
            product = self._dense if form in ("mixed", "merged") else self._factored
            whole = len(buckets) == len(self.buckets)
            out += product(buckets, x_KND if whole else x_KND[cells], cells)
        y_KNO = out[0] if len(out) == 1 else torch.cat(out)
        return y_KNO.view(*x.shape[:-1], y_KNO.shape[-1])

    def _factored(self, buckets: Sequence[Bucket], x_kND: Tensor, cells: slice) -> list[Tensor]:
        """One frozen product for all of ``buckets``; each adds its adapters' products."""
        W_OD: Any = dense_weight(self.base)
        once = W_OD is not None and buckets[0].form == "concatenated"
        ends = list(accumulate((bucket.cells for bucket in buckets), initial=0))
        parts = [slice(*ends) for ends in pairwise(ends)]
        adapters = [tensor for b in buckets for tensor in (b.A_kRD, b.B_kOR, b.gamma_k11)]
        how: tuple[Any, ...] = once, parts, *adapters
        with torch.autocast(x_kND.device.type, enabled=False):
            if W_OD is not None and not self._drops:
                return [Factored.apply(x_kND.to(W_OD.dtype), None, W_OD, self.bias, *how)]
        kept_kND = x_kND * self._kept(buckets, x_kND, cells) if self._drops else x_kND
        if once:
            x_kND = x_kND.to(W_OD.dtype)
            y_kNO = x_kND.new_zeros(*x_kND.shape[:2], len(W_OD))
        else:
            y_kNO = self.base(x_kND)
        with torch.autocast(x_kND.device.type, enabled=False):
            # Under autocast the base's product is bf16, and so are the adapters' products.
            y_kNO = Factored.apply(kept_kND.to(y_kNO.dtype), y_kNO, None, None, *how)
            if once:
                y_kNO = once_rounded(y_kNO, x_kND, W_OD, self.bias)
            return [y_kNO]

    def _dense(self, buckets: Sequence[Bucket], x_kND: Tensor, cells: slice) -> list[Tensor]:
        W_OD, bias = dense_weight(self.base), self.bias
        assert W_OD is not None
        sizes = [bucket.cells for bucket in buckets]
        products = [b.multiply(x, W_OD) for b, x in zip(buckets, x_kND.split(sizes), strict=True)]
        return products if bias is None else [y + bias for y in products]

    def _new_dropout_streams(self, device: torch.device) -> list[torch.Generator]:
        return [generator_for(spec.seed, f"{self.layer}/dropout", device) for spec in self.specs]

    @property
    def _drops(self) -> bool:
        return self.training and any(spec.dropout for spec in self.specs)

    def _buckets(self) -> list[Bucket]:
        return list(self.buckets)  # type: ignore[arg-type]

    def _kept(self, buckets: Sequence[Bucket], x_kND: Tensor, cells: slice) -> Tensor:
        """The factors of dropout on the input of the adapters, as in PEFT: 0 or ``1 / (1 - p)``,
        ``[k, N, D]``. Listeners get them."""
        if self._dropout_streams is None:
            self._dropout_streams = self._new_dropout_streams(x_kND.device)
        masks = []
        for spec, stream in zip(self.specs[cells], self._dropout_streams[cells], strict=True):
            keep = 1 - spec.dropout
            masks.append(torch.empty_like(x_kND[0]).bernoulli_(keep, generator=stream).div_(keep))
        kept_kND = torch.stack(masks)
        sizes = [bucket.cells for bucket in buckets]
        for bucket, kept in zip(buckets, kept_kND.split(sizes), strict=True):
            if bucket.listeners is not None:
                bucket.listeners.dropped(kept)
        return kept_kND


@contextmanager
def merged_once(banks: Sequence[LoraBank], ahead: bool = False) -> Iterator[None]:
    """Context manager: weights are merged once, and all passes reuse them.

    ``ahead``: merge now, for a compiled pass. Factors must not change until the end, where the
    accumulated gradients of the merged weights (``D O`` floats each) are projected on A and B. A
    form that does not merge is not affected.
    """
    with ExitStack() as stack:
        for bank in banks:
            W_OD = dense_weight(bank.base) if ahead else None
            for bucket in bank._buckets():
                stack.enter_context(bucket.merged_once(W_OD))
        yield
