"""Attention within sequences, for rows of tokens that hold several. transformers passes their
lengths (``sequences``); each is computed alone, without a mask of N by N tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

WITHIN_SEQUENCES = "within_sequences"
"""The name of this attention function in transformers."""


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
    the lengths of the sequences of row ``b``, whose sum is T. None: what transformers' ``sdpa``
    computes. Returns ``[B, T, heads, d]``.
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
