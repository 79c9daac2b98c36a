"""Examples to token batches of one shape.

Every batch is ``[B, T]`` with ``T = data.sequence_length``, so that compiled kernels and memory are
the same at every step and the cells of a fold can share a forward pass. On a CPU, where shapes may
vary, a batch can be trimmed to its longest row.

The text is ``context + target + eos`` without a chat template, as in FinLoRA and FinGPT.
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
from study.data.examples import Example, fingerprint, split
from study.data.questions import Questions
from study.data.sources import load_examples
from study.errors import StudyError, no_panic, one_line, short
from study.store.cache import kept_arrays

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The target that torch's ``cross_entropy`` ignores."""

_CHUNK, _CHARACTERS = 1000, 1 << 19
"""Examples and characters tokenised at once: enough for the tokenizer's threads. A token takes
about 200 bytes meanwhile."""

_PER_TOKEN = 100
"""Characters. Of a text that is longer per token that it may have, only the part that counts is
tokenised. Few tokens are as long."""

_VERSION = 1
"""The version of the tokenisation. Increase it when the token arrays change: they are cached."""


@dataclass(frozen=True)
class TokenBatch:
    """``B`` sequences of ``T`` tokens, padded on the right.

    - ``targets_BT[b, t]``: the token that position ``t`` must predict, ``input_ids_BT[b, t + 1]``,
      if that token is part of the target or its eos; otherwise -100;
    - ``real_BT``: False on padding. Causal attention hides padding on the right from real tokens,
      so no attention mask is needed.
    """

    input_ids_BT: Tensor
    targets_BT: Tensor
    real_BT: Tensor

    @property
    def supervised(self) -> int:
        """The number of tokens in the loss. On a GPU this blocks: call it before :meth:`to`."""
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
    """``N`` tokenised examples, concatenated in one array. Rows are padded only in a batch.

    - ``tokens``: int32 [total];
    - ``starts``: int64 [N + 1]; row ``i`` is ``tokens[starts[i] : starts[i + 1]]``, of at most
      ``sequence_length`` tokens;
    - ``contexts``: int32 [N], the number of context tokens of each row.
    """

    tokens: np.ndarray
    starts: np.ndarray
    contexts: np.ndarray
    sequence_length: int
    padding_id: int

    def __len__(self) -> int:
        return len(self.contexts)

    def batch(self, seed: int, step: int, batch_size: int) -> TokenBatch:
        """The batch of a step, counted in batches from 0. It depends on the arguments only.

        Each epoch is a permutation keyed by (seed, epoch), so the batch of any step can be computed
        without the steps before it. A batch may span epochs and be larger than the table.
        """
        rows = [
            int(_permutation(len(self), seed, position // len(self))[position % len(self)])
            for position in range(step * batch_size, (step + 1) * batch_size)
        ]
        return self._rows(rows)

    def batches(self, batch_size: int) -> Iterator[TokenBatch]:
        """Yield every example once, in order. The last batch may have fewer rows."""
        for start in range(0, len(self), batch_size):
            yield self._rows(range(start, min(start + batch_size, len(self))))

    def context_ids(self) -> list[list[int]]:
        """The tokens of each row's context."""
        rows = zip(self.starts[:-1], self.contexts, strict=True)
        return [self.tokens[start : start + length].tolist() for start, length in rows]

    def _rows(self, rows: Sequence[int]) -> TokenBatch:
        shape = (len(rows), self.sequence_length)
        input_ids_BT = np.full(shape, self.padding_id, dtype=np.int64)
        targets_BT = np.full(shape, IGNORED, dtype=np.int64)
        real_BT = np.zeros(shape, dtype=bool)
        for b, row in enumerate(rows):
            ids = self.tokens[self.starts[row] : self.starts[row + 1]]
            first = max(int(self.contexts[row]), 1)  # token 0 has no token before it
            input_ids_BT[b, : len(ids)] = ids
            targets_BT[b, first - 1 : len(ids) - 1] = ids[first:]
            real_BT[b, : len(ids)] = True
        return TokenBatch(
            torch.from_numpy(input_ids_BT), torch.from_numpy(targets_BT), torch.from_numpy(real_BT)
        )


@dataclass(frozen=True, eq=False)
class Corpus:
    """The training examples, the held-out examples, also as questions, and the content hash."""

    train: TokenTable
    heldout: TokenTable
    questions: Questions
    fingerprint: str

    def check_tokens(self, vocabulary: int, named: str) -> None:
        """Raises :class:`StudyError` if a token is not one of the ``vocabulary`` of a model.

        A tokenizer may know more than its model: Gemma's has a token for images. ``named``: the
        model in errors.
        """
        highest = max(int(table.tokens.max(initial=0)) for table in (self.train, self.heldout))
        if highest >= vocabulary:
            text = self.questions.tokenizer.decode([highest])
            raise StudyError(
                f"the data has {short(text)}, which is token {highest} of the tokenizer, but "
                f"{named} has {vocabulary} embeddings: remove it from the data"
            )


def build_corpus(
    config: DataConfig, tokenizer: "PreTrainedTokenizerBase", eos_token_id: int | None
) -> Corpus:
    """Load, split and tokenise the data set that ``config`` names. Tokens are cached on disk.

    ``eos_token_id`` follows every target that leaves room for it; None: no target has an eos.

    Raises :class:`StudyError` as :func:`load_examples` and :func:`split` do, and for a sequence
    length below 2.
    """
    length = config.sequence_length
    if length < 2:
        raise StudyError(
            f"data.sequence_length={length} is too short to predict a token from another: "
            "use 2 or more"
        )
    examples = load_examples(config)
    content = fingerprint(examples)
    train, heldout = split(examples, config.heldout)

    def tokenised() -> dict[str, np.ndarray]:
        return {
            f"{side}_{name}": array
            for side, part in (("train", train), ("heldout", heldout))
            for name, array in _tokenise(part, tokenizer, eos_token_id, length).items()
        }

    text_to_ids = tokenizer.backend_tokenizer.to_str() + str(tokenizer.special_tokens_map)
    made_from = (content, config.heldout, length, eos_token_id, text_to_ids, _VERSION)
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:24]
    arrays = kept_arrays(f"tokens-{key}", tokenised)
    padding_id = next((i for i in (tokenizer.pad_token_id, eos_token_id) if i is not None), 0)

    def table(side: str) -> TokenTable:
        return TokenTable(
            arrays[f"{side}_tokens"],
            arrays[f"{side}_starts"],
            arrays[f"{side}_contexts"],
            sequence_length=length,
            padding_id=padding_id,
        )

    contexts, targets = table("heldout").context_ids(), [example.target for example in heldout]
    questions = Questions(contexts, targets, tokenizer, padding_id, eos_token_id)
    return Corpus(table("train"), table("heldout"), questions, content)


def _tokenise(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    eos_token_id: int | None,
    length: int,
) -> dict[str, np.ndarray]:
    """The arrays of a :class:`TokenTable`, by name."""
    end = [] if eos_token_id is None else [eos_token_id]
    bos = tokenizer.bos_token_id
    # In place of an empty context, so that the target's first token can be predicted.
    start = [bos] if bos is not None else end
    tokens, lengths, contexts = [], [], []
    most = _PER_TOKEN * length
    for chunk in _chunks(examples, most):
        questions = [example.context[-most:] for example in chunk]
        answers = [example.target[:most] for example in chunk]
        context_ids = _encode(tokenizer, questions, special=True)
        target_ids = _encode(tokenizer, answers, special=False)
        fitted = [
            _fit(context or start, target + end, length, bos)
            for context, target in zip(context_ids, target_ids, strict=True)
        ]
        flat = [token for context, answer in fitted for token in context + answer]
        tokens.append(np.array(flat, dtype=np.int32))
        lengths += [len(context) + len(answer) for context, answer in fitted]
        contexts += [len(context) for context, _ in fitted]
    return {
        "tokens": np.concatenate(tokens),
        "starts": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        "contexts": np.array(contexts, dtype=np.int32),
    }


def _chunks(examples: Sequence[Example], most: int) -> Iterator[Sequence[Example]]:
    """The examples in order: at most ``_CHUNK`` at once, and no more once they have
    ``_CHARACTERS``, of which ``most`` count of each text.
    """
    first = size = 0
    for index, example in enumerate(examples):
        if index > first and (index - first == _CHUNK or size > _CHARACTERS):
            yield examples[first:index]
            first, size = index, 0
        size += min(len(example.context), most) + min(len(example.target), most)
    yield examples[first:]


def _encode(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], special: bool
) -> list[list[int]]:
    # A tokenizer would cut the end of a question, so _fit cuts instead. ``verbose=False`` silences
    # the warning about long texts.
    try:
        with no_panic():
            encoding = tokenizer(
                texts,
                add_special_tokens=special,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                verbose=False,
            )
    except Exception as error:  # what it raises depends on the parts of the tokenizer
        raise StudyError(
            f"the model's tokenizer fails on the data ({one_line(error)}): use the tokenizer.json "
            "that was published with the model"
        ) from None
    return list(encoding["input_ids"])


def _fit(
    context: list[int], answer: list[int], length: int, bos: int | None
) -> tuple[list[int], list[int]]:
    """Cut a context and an answer (target and eos) to ``length`` tokens in total.

    The answer is cut on the right, to at most ``length - 1`` tokens; its first token needs one to
    be predicted from. The context is then cut on the left, after its bos.
    """
    answer = answer[: length - 1]
    excess = len(context) + len(answer) - length
    if excess <= 0:
        return context, answer
    kept = context[:1] if context[0] == bos else []
    return kept + context[excess + len(kept) :], answer


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch. Cached, since every step and every cell of a seed reads it.

    It sorts raw random numbers, because a stored cell must be reproducible after an upgrade: numpy
    keeps the raw stream of a bit generator fixed, but not ``Generator.permutation``.
    """
    key = np.random.SeedSequence([seed % 2**64, epoch])  # numpy rejects negative seeds
    return np.argsort(np.random.Philox(key).random_raw(size), kind="stable")
