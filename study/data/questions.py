"""Held-out examples as questions to be answered, and the score of the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Questions:
    """Held-out contexts, as the loss sees them, and the targets that answer them, as the file has them.

    ``padding_id`` fills rows, ``eos_token_id`` ends an answer (None: only its length does).
    """

    contexts: Sequence[list[int]]
    targets: Sequence[str]
    tokenizer: "PreTrainedTokenizerBase"
    padding_id: int
    eos_token_id: int | None

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every question once, in order: token ids ``[B, L]`` and which of them are real.

        Padded on the left, to the longest question of the batch: an answer goes on where its question ends.
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
        """:func:`exact_match` of answers given as token ids, one a question; what follows an eos is no part of one."""
        texts = [
            self.tokenizer.decode(answer, skip_special_tokens=True)
            for answer in map(self._ended, answers)
        ]
        return exact_match(texts, self.targets)

    def _ended(self, answer: Sequence[int]) -> list[int]:
        ids = list(answer)
        return ids[: ids.index(self.eos_token_id)] if self.eos_token_id in ids else ids


def exact_match(answers: Sequence[str], targets: Sequence[str]) -> float:
    """The share of answers whose first label is their target, whatever its case (FinLoRA, ``test/test_dataset.py``).

    The labels are all of the targets.
    """
    labels = {_plain(target) for target in targets}
    right = [
        first_label(answer, labels) == _plain(target)
        for answer, target in zip(answers, targets, strict=True)
    ]
    return sum(right) / len(right)


def first_label(answer: str, labels: set[str]) -> str | None:
    """The label that begins first in ``answer``, the longest of those that begin there; None where it holds none.

    Labels are in lower case. FinLoRA leaves open which of two labels is meant where one begins another (0.1 and 0.12).
    """
    text = answer.lower()
    found = [(place, -len(label), label) for label in labels if (place := text.find(label)) >= 0]
    return min(found)[2] if found else None


def _plain(target: str) -> str:
    return target.strip().lower()
