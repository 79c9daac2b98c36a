"""Held-out examples as questions for greedy decoding, and the score of the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Questions:
    """Held-out questions: the token ids of each context, as in the loss, and each target's text.

    ``padding_id`` fills rows. ``eos_token_id`` ends an answer; None: only its length ends it.
    """

    contexts: Sequence[list[int]]
    targets: Sequence[str]
    tokenizer: "PreTrainedTokenizerBase"
    padding_id: int
    eos_token_id: int | None

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every question once, in order: token ids ``[B, L]`` and a mask, True on real ones.

        ``L`` is the longest question of the batch. Padding is on the left, so that an answer
        continues its question.
        """
        for start in range(0, len(self.contexts), batch_size):
            rows = self.contexts[start : start + batch_size]
            length = max(len(row) for row in rows)
            ids_BL = torch.tensor([[self.padding_id] * (length - len(row)) + row for row in rows])
            real_BL = torch.tensor(
                [[False] * (length - len(row)) + [True] * len(row) for row in rows]
            )
            yield ids_BL, real_BL

    def exact_match(self, answers: Sequence[Sequence[int]]) -> float:
        """:func:`exact_match` of the token ids of one answer per question, cut at the first eos."""
        texts = [
            self.tokenizer.decode(self._before_eos(answer), skip_special_tokens=True)
            for answer in answers
        ]
        return exact_match(texts, self.targets)

    def _before_eos(self, answer: Sequence[int]) -> list[int]:
        ids = list(answer)
        return ids[: ids.index(self.eos_token_id)] if self.eos_token_id in ids else ids


def exact_match(answers: Sequence[str], targets: Sequence[str]) -> float:
    """The share of answers whose first label is their target, ignoring case.

    The labels are all targets. The rule is FinLoRA's (``test/test_dataset.py``).
    """
    labels = {_plain(target) for target in targets}
    right = [
        first_label(answer, labels) == _plain(target)
        for answer, target in zip(answers, targets, strict=True)
    ]
    return sum(right) / len(right)


def first_label(answer: str, labels: set[str]) -> str | None:
    """The label that occurs first in ``answer``; None if no label occurs in it.

    ``labels`` are in lower case. If several labels start at the same character, the longest counts:
    0.12, not 0.1. FinLoRA does not define this case.
    """
    text = answer.lower()
    found = [(place, -len(label), label) for label in labels if (place := text.find(label)) >= 0]
    return min(found)[2] if found else None


def _plain(target: str) -> str:
    return target.strip().lower()
