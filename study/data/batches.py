"""Examples to token batches of one fixed shape.

Every batch is ``[B, T]`` with ``T = data.sequence_length``, whatever it holds: static shapes keep compiled kernels and
memory the same at every step, and let the cells of a pack share a forward pass. Where shapes may vary, on a CPU, a
batch can be trimmed to its longest row.

The text is FinLoRA's and FinGPT's plain concatenation, ``context + target + eos``, without a chat template.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from study.config import DataConfig
from study.data.examples import Example, fingerprint, load_examples, split
from study.data.questions import Questions
from study.errors import StudyError
from study.store.cache import kept_arrays

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # what torch's cross_entropy ignores
_CHUNK = 1000  # examples tokenised at once: enough to keep the tokenizer's threads busy, little enough to hold as lists


@dataclass(frozen=True)
class TokenBatch:
    """``B`` sequences of ``T`` tokens, padded on the right.

    ``targets_BT[b, t]`` is the token that position ``t`` must predict, ``input_ids_BT[b, t + 1]``, where that token
    belongs to the target or is the eos behind it, and -100 elsewhere. ``real_BT`` is False on padding; under causal
    attention no real token sees any, so no attention mask is needed.
    """

    input_ids_BT: Tensor
    targets_BT: Tensor
    real_BT: Tensor

    @property
    def supervised(self) -> int:
        """How many tokens the loss is a mean over. It waits for the device: ask on the CPU, before :meth:`to`."""
        return int((self.targets_BT != IGNORED).sum())

    def trimmed(self) -> "TokenBatch":
        """The same batch without the columns in which every row is padding."""
        longest = int(self.real_BT.any(0).sum())
        return TokenBatch(
            self.input_ids_BT[:, :longest], self.targets_BT[:, :longest], self.real_BT[:, :longest]
        )

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(
            self.input_ids_BT.to(device), self.targets_BT.to(device), self.real_BT.to(device)
        )


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Tokenised examples, end to end in one array: four bytes a token, and padded only in the batch that is asked for.

    ``tokens`` int32 [total]; ``starts`` int64 [N + 1]: row ``i`` is ``tokens[starts[i] : starts[i + 1]]``, never longer
    than ``sequence_length``; ``contexts`` int32 [N]: how many of its tokens are context.
    """

    tokens: np.ndarray
    starts: np.ndarray
    contexts: np.ndarray
    sequence_length: int
    padding_id: int

    def __len__(self) -> int:
        return len(self.contexts)

    def batch(self, seed: int, step: int, batch_size: int) -> TokenBatch:
        """The batch of a step (counted in batches, from 0): the same for every cell that has the same ``data.seed``.

        Each epoch is a fresh permutation keyed by (seed, epoch), so any step can be asked for without the steps before
        it; a batch may end one epoch and begin the next, and be larger than the table.
        """
        positions = range(step * batch_size, (step + 1) * batch_size)
        return self._rows(
            [int(_permutation(len(self), seed, p // len(self))[p % len(self)]) for p in positions]
        )

    def batches(self, batch_size: int) -> Iterator[TokenBatch]:
        """Every example once, in order; the last batch has fewer rows where ``batch_size`` does not divide them."""
        for start in range(0, len(self), batch_size):
            yield self._rows(range(start, min(start + batch_size, len(self))))

    def context_ids(self) -> list[list[int]]:
        """Each row's context alone."""
        rows = zip(self.starts[:-1], self.contexts, strict=True)
        return [self.tokens[start : start + length].tolist() for start, length in rows]

    def _rows(self, rows: Sequence[int]) -> TokenBatch:
        shape = (len(rows), self.sequence_length)
        input_ids_BT = np.full(shape, self.padding_id, dtype=np.int64)
        targets_BT = np.full(shape, IGNORED, dtype=np.int64)
        real_BT = np.zeros(shape, dtype=bool)
        for b, row in enumerate(rows):
            ids = self.tokens[self.starts[row] : self.starts[row + 1]]
            first = max(int(self.contexts[row]), 1)  # nothing stands before token 0 to predict it
            input_ids_BT[b, : len(ids)] = ids
            targets_BT[b, first - 1 : len(ids) - 1] = ids[first:]
            real_BT[b, : len(ids)] = True
        return TokenBatch(
            torch.from_numpy(input_ids_BT), torch.from_numpy(targets_BT), torch.from_numpy(real_BT)
        )


@dataclass(frozen=True, eq=False)
class Corpus:
    """Both sides of the split, the held-out one as questions too, and the content hash of the examples behind them."""

    train: TokenTable
    heldout: TokenTable
    questions: Questions
    fingerprint: str


def build_corpus(
    config: DataConfig, tokenizer: "PreTrainedTokenizerBase", eos_token_id: int | None
) -> Corpus:
    """Load, split and tokenise what ``data=...`` names; the tokens are kept in the cache folder for the next time.

    ``eos_token_id`` ends every target that fits; None ends none.

    Raises:
        StudyError: as :func:`load_examples` and :func:`split` do, and for a sequence length under 2 tokens, in which
            nothing can be predicted from anything.
    """
    if config.sequence_length < 2:
        raise StudyError(
            f"data.sequence_length={config.sequence_length} leaves nothing to predict: use 2 or more"
        )
    examples = load_examples(config)
    content = fingerprint(examples)
    train, heldout = split(examples, config.heldout)

    def tokenised() -> dict[str, np.ndarray]:
        sides = {"train": train, "heldout": heldout}.items()
        tables = {
            side: _tokenise(part, tokenizer, eos_token_id, config.sequence_length)
            for side, part in sides
        }
        return {
            f"{side}_{name}": array
            for side, table in tables.items()
            for name, array in table.items()
        }

    made_from = (
        content,
        config.heldout,
        config.sequence_length,
        eos_token_id,
        _tokenizer_text(tokenizer),
        _VERSION,
    )
    arrays = kept_arrays(
        f"tokens-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:24]}", tokenised
    )
    padding_id = next((i for i in (tokenizer.pad_token_id, eos_token_id) if i is not None), 0)

    def table(side: str) -> TokenTable:
        tokens, starts, contexts = (
            arrays[f"{side}_{name}"] for name in ("tokens", "starts", "contexts")
        )
        return TokenTable(tokens, starts, contexts, config.sequence_length, padding_id)

    of_heldout, targets = table("heldout"), [example.target for example in heldout]
    questions = Questions(of_heldout.context_ids(), targets, tokenizer, padding_id, eos_token_id)
    return Corpus(table("train"), of_heldout, questions, content)


_VERSION = 1
"""Of how examples become tokens: whoever changes that takes a new number, so that no kept table is taken for it."""


def _tokenizer_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """All that turns text into ids."""
    return tokenizer.backend_tokenizer.to_str() + str(tokenizer.special_tokens_map)


def _tokenise(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    eos_token_id: int | None,
    length: int,
) -> dict[str, np.ndarray]:
    """The arrays of a :class:`TokenTable`, by name."""
    end = [] if eos_token_id is None else [eos_token_id]
    bos = tokenizer.bos_token_id
    start = (
        [bos] if bos is not None else end
    )  # stands in for an empty context, so that all of the target is predicted
    tokens, lengths, contexts = [], [], []
    for at in range(0, len(examples), _CHUNK):
        chunk = examples[at : at + _CHUNK]
        context_ids = _encode(tokenizer, [example.context for example in chunk], special=True)
        target_ids = _encode(tokenizer, [example.target for example in chunk], special=False)
        fitted = [
            _fit(c or start, t + end, length, bos)
            for c, t in zip(context_ids, target_ids, strict=True)
        ]
        tokens.append(
            np.array(
                [token for context, answer in fitted for token in context + answer], dtype=np.int32
            )
        )
        lengths += [len(context) + len(answer) for context, answer in fitted]
        contexts += [len(context) for context, _ in fitted]
    return {
        "tokens": np.concatenate(tokens),
        "starts": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        "contexts": np.array(contexts, dtype=np.int32),
    }


def _encode(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], special: bool
) -> list[list[int]]:
    # The cut is ours (a tokenizer's own would take the question with it), so a long text is no cause for its warning.
    encoding = tokenizer(
        texts,
        add_special_tokens=special,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        verbose=False,
    )
    return list(encoding["input_ids"])


def _fit(
    context: list[int], answer: list[int], length: int, bos: int | None
) -> tuple[list[int], list[int]]:
    """Cut to ``length`` tokens: the answer (target and eos) on its right, to leave one token that predicts its first;
    then the context on its left, where the oldest text is, but for its bos."""
    answer = answer[: length - 1]
    excess = len(context) + len(answer) - length
    if excess <= 0:
        return context, answer
    kept = context[:1] if context[0] == bos else []
    return kept + context[excess + len(kept) :], answer


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch. Cached, because every step and every cell of a seed asks for it.

    numpy promises that the raw stream of a bit generator never changes, and does not promise it of
    ``Generator.permutation``: the data order of a stored cell must outlive a numpy release.
    """
    key = np.random.SeedSequence(
        [seed % 2**64, epoch]
    )  # a negative seed is as good as any, but numpy refuses it
    return np.argsort(np.random.Philox(key).random_raw(size), kind="stable")
