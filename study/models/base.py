"""The frozen base that adapters are trained on: a causal language model, split before its head.

The loss needs logits only at supervised tokens. So the model runs up to its last norm, and the head
is applied to the hidden states of those tokens only. With a vocabulary of 49152, full logits would
take most of the activation memory.

The backward pass can recompute the blocks (:func:`recomputing`).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from study.config import PRECISIONS, ModelConfig
from study.errors import StudyError
from study.models import quantised
from study.models.card import ModelCard, describe, first_block
from study.models.messages import failing, replaced
from study.models.sources import find_model
from study.reading import check_memory, free_memory

_DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True))
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Rounding error between the whole model and its two parts, as a share of the largest logit."""
_LESS = "try precision=bf16, model.quant_bits=4, a smaller model or another device"

MOST_PROGRAMS = 64
"""The most programs of a block that torch keeps: for forms and ranks of a pack. Default: 8."""
WITHIN_SEQUENCES = "within_sequences"
"""The attention function of rows that hold several sequences, by its name in transformers."""
_FIND_PACKED = "find_packed_sequence_indices"
"""Without a mask, this function of transformers looks for packed rows, and reads the device."""


@dataclass
class FrozenBase:
    """A causal language model in eval mode. ``T`` tokens, ``d`` features, ``V`` vocabulary."""

    model: nn.Module
    card: ModelCard
    separates_sequences: bool = False
    """Whether a row may hold several sequences."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def sent(self, x: Tensor) -> Tensor:
        """``x`` on the device. From pinned memory, so that the host does not wait for CUDA."""
        on_host = x.pin_memory() if self.device.type == "cuda" else x
        return on_host.to(self.device, non_blocking=True)

    @property
    def trunk(self) -> Any:
        """The part of the model below its head."""
        return self.model.get_submodule(trunk_name(self.model))

    def hidden_states(
        self, input_ids_BT: Tensor, lengths: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """The input of the head, ``[B, T, d]``, with causal attention and positions from 0.

        Every token counts as real. Does not wait for the device. ``lengths``: of the sequences in
        each row, before its padding, if a row has several. It needs :attr:`separates_sequences`.
        """
        options: dict[str, Any] = {}
        if lengths is not None and any(len(row) > 1 for row in lengths):
            T = input_ids_BT.shape[1]
            # The padding of a row is a separate sequence.
            sequences = [[*row, T - sum(row)] if sum(row) < T else [*row] for row in lengths]
            positions = [torch.cat([torch.arange(n) for n in row]) for row in sequences]
            positions_BT = self.sent(torch.stack(positions))
            options = {"position_ids": positions_BT, "sequences": sequences}
        with replaced(_FIND_PACKED, {masking_utils: lambda *_, **__: None}):
            ids = self.sent(input_ids_BT)
            return self.trunk(input_ids=ids, use_cache=False, **options).last_hidden_state

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The logits of hidden states, ``[N, V]``, with all that a family does after the head."""
        # A shallow copy takes microseconds. It shares the submodules, in its own dict.
        head: Any = copy.copy(self.model)
        head._modules = {**head._modules, trunk_name(head): _IdentityTrunk(self.trunk)}
        return head(inputs_embeds=hidden_ND[None]).logits[0]


def trunk_name(model: Any) -> str:
    """The child that computes the hidden states: ``base_model_prefix`` or, in a few families (Llama
    4), the one that has the embeddings."""
    children = dict(model.named_children())
    if model.base_model_prefix in children:
        return str(model.base_model_prefix)
    embeddings = model.get_input_embeddings()
    return next(name for name, child in children.items() if embeddings in set(child.modules()))


class _IdentityTrunk(nn.Module):
    """Replaces a model's trunk; its output is its input. Attributes are those of ``trunk``."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.__dict__["trunk"] = trunk  # not a submodule: it is not run

    def __getattr__(self, name: str) -> Any:
        """Falcon H1 reads the scale of its logits from the trunk."""
        return getattr(self.__dict__["trunk"], name)

    @property
    def decoder(self) -> "_IdentityTrunk":
        """OPT reads its hidden states from the decoder in its trunk."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_TrunkOutput":
        return _TrunkOutput((inputs_embeds,))


class _TrunkOutput(tuple[Tensor]):
    """A trunk's output as every family reads it: by index or by name. Other attributes are None."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def load_base(config: ModelConfig, device: torch.device, precision: str) -> FrozenBase:
    """Load a model onto ``device`` with weights in ``precision``, or its block linears in
    ``config.quant_bits`` (:mod:`study.models.quantised`). torch's global random state is
    unchanged."""
    card, dtype = describe(config), _DTYPES[precision]
    unloaded = find_model(config)
    in_linears = card.in_linears * (config.quant_bits or 8 * dtype.itemsize) // 8
    need = in_linears + (card.parameters - card.in_linears) * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    check_memory(need, free, unloaded.named, _LESS)
    model = unloaded.load(device, dtype, config.quant_bits).eval().requires_grad_(False)
    model.config.use_cache = False
    # A checkpoint's own generation config may penalise repetition, which is not greedy decoding.
    model.generation_config = GenerationConfig()
    if config.quant_bits is not None:
        quantised.use_one_dtype(model, dtype)
    base = FrozenBase(model, describe(config))  # again: the files may have changed since
    # On CUDA, 8-bit products are in fp16, so the logits agree within a bf16 tolerance only.
    tolerance = _TOLERANCE[dtype if config.quant_bits is None else torch.bfloat16]
    _check(base, device, tolerance)
    base.separates_sequences = _separates_sequences(base, tolerance)
    return base


@torch.no_grad()
def _check(base: FrozenBase, device: torch.device, relative: float) -> None:
    """Compare the logits of two sequences, whole and in two parts."""
    model: Any = base.model
    family = f"model {base.card.name!r} ({type(model).__name__})"
    half = max(1, min(4, base.card.max_length // 2))
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(base.card.vocabulary, (2, 2 * half), generator=generator).to(device)
    ids_BT[1, :half] = ids_BT[0, :half]
    with failing(f"{family} fails on a short sequence of tokens", "choose another causal LM"):
        whole_BTV = model(input_ids=ids_BT, use_cache=False).logits
        parts_BTV = base.logits(base.hidden_states(ids_BT).flatten(0, 1)).view_as(whole_BTV)
    if whole_BTV.isnan().any():
        raise StudyError(f"{family} computes NaN logits: fetch or save the model again")
    tolerance = relative * float(whole_BTV.abs().max())
    if not torch.allclose(parts_BTV, whole_BTV, rtol=0.0, atol=tolerance):
        why = f"{family} computes its logits from more than its last hidden states"
        raise StudyError(f"{why}: choose another causal LM")
    if not torch.allclose(whole_BTV[0, :half], whole_BTV[1, :half], rtol=0.0, atol=tolerance):
        why = f"{family} attends to later tokens"
        raise StudyError(f"{why}: choose a causal LM (BERT needs is_decoder=true in config.json)")


LEAK = 0.01
"""The most that a sequence may change the next one, as a share of what rounding may change."""


@torch.no_grad()
def _separates_sequences(base: FrozenBase, relative: float) -> bool:
    """Whether two sequences in one row have the hidden states that each has alone, up to
    ``relative`` to the largest, and do not depend on each other.

    If so, the model keeps the attention function that separates them; otherwise its own, as with
    state-space layers or ALiBi. What a short convolution carries over can be less than rounding.
    """
    model: Any = base.model
    own = model.config._attn_implementation
    if own != "sdpa" or base.card.max_length < 4:
        return False
    length = min(12, base.card.max_length // 2)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(base.card.vocabulary, (2, 2 * length), generator=generator)
    ids_BT[1, length:] = ids_BT[0, length:]
    alone_BTd = torch.cat([base.hidden_states(ids) for ids in ids_BT.split(length, 1)], 1)
    size = float(alone_BTd.abs().max())
    try:
        model.set_attn_implementation(WITHIN_SEQUENCES)
        rows_BTd = base.hidden_states(ids_BT, [[length, length]] * 2)
        is_alone = torch.allclose(rows_BTd, alone_BTd, rtol=0.0, atol=relative * size)
        after_Td, other_Td = rows_BTd[:, length:]
        if is_alone and torch.allclose(after_Td, other_Td, rtol=0.0, atol=LEAK * relative * size):
            return True
    except Exception:  # a family without this argument, or with its own attention
        pass
    model.set_attn_implementation(own)
    return False


def block_path(card: ModelCard) -> str:
    """The path of a model's list of blocks."""
    place = first_block(card.linears)
    if place is None:
        keys = "train.shard=false and train.checkpointing=false"
        raise StudyError(f"{card.name} has no single list of blocks: use {keys}")
    return place[0]


def blocks_of(base: FrozenBase) -> list[nn.Module]:
    blocks: Any = base.model.get_submodule(block_path(base.card))
    return list(blocks)


@contextmanager
def recomputing(base: FrozenBase) -> Iterator[None]:
    """Context manager: passes keep only the input of each block, and recompute it backwards."""

    def again(forward: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    blocks = blocks_of(base)
    with replaced("forward", {block: partial(again, block.forward) for block in blocks}):
        yield


def within_sequences(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequences: Sequence[Sequence[int]] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of each row.

    ``query``: ``[B, heads, T, d]``; ``key`` and ``value`` may have fewer heads. ``sequences[b]``:
    the lengths of the sequences of row ``b``; None: what transformers' ``sdpa`` computes. Returns
    ``[B, T, heads, d]``.
    """
    if sequences is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = len(query) if all(lengths == sequences[0] for lengths in sequences) else 1
    attended = []
    each = zip(*(x.split(rows) if rows < len(x) else [x] for x in (query, key, value)), strict=True)
    for lengths, row in zip(sequences, each, strict=False):
        parts = zip(*(x.split(lengths, 2) for x in row), strict=True)
        windows = (_window(length, sliding_window, query.device) for length in lengths)
        outputs = [
            sdpa_attention_forward(module, q, k, v, window, **options)[0]
            for (q, k, v), window in zip(parts, windows, strict=True)
        ]
        attended.append(torch.cat(outputs, 1))
    return torch.cat(attended), None


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask of a sequence longer than the sliding window: bool ``[1, 1, T, T]``, or None."""
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    behind = place[:, None] - place
    return ((behind >= 0) & (behind < window))[None, None]


AttentionInterface.register(WITHIN_SEQUENCES, within_sequences)
AttentionMaskInterface.register(WITHIN_SEQUENCES, sdpa_mask)


class CompiledBlocks:
    """The blocks of ``base`` after the first adapted one, compiled for plain training steps.

    A compiled program ignores hooks that are added later, so passes of probes, evaluations and
    losses after an update are not compiled. All blocks and all ranks share one program, in which
    the rank is a variable dimension. Each form of the adapters and each number of tokens or cells
    needs its own.

    The first adapted block's input needs no gradient, so it would need its own program. ``layers``:
    the paths of the adapted linears. Nothing is compiled if they are not all in one list of blocks.
    ``ranks``: the factors inside the blocks, each with its dimension that is the rank.
    """

    def __init__(
        self, base: FrozenBase, layers: Sequence[str], ranks: Sequence[tuple[Tensor, int]]
    ) -> None:
        self.blocks: list[nn.Module] = []
        if place := first_block(layers):
            path, first = place
            every_block: Any = base.model.get_submodule(path)
            self.blocks = list(every_block[first + 1 :])
        self._programs = {
            block: torch.compile(block.forward, dynamic=False) for block in self.blocks
        }
        for factor, dimension in ranks if self.blocks else ():
            torch._dynamo.maybe_mark_dynamic(factor, dimension)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context manager: passes run the compiled blocks."""
        # Parameters may have dimensions of variable size.
        settings = {"force_parameter_static_shapes": False, "recompile_limit": MOST_PROGRAMS}
        with (
            replaced("forward", self._programs),
            torch._dynamo.config.patch(settings) if self.blocks else nullcontext(),
        ):
            yield
