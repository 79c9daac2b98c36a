"""Examples to token batches of one shape, and held-out examples as questions.

Every batch is ``[B, T]`` with ``T = data.sequence_length``, so that compiled kernels and memory are
the same at every step and the cells of a fold can share a forward pass. On a CPU, where shapes may
vary, a batch can be trimmed to its longest row.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from study.config import DataConfig
from study.data.examples import Conversation, Example, Row, fingerprint, split_places
from study.data.sources import load_rows
from study.data.tokens import Encoder, tokenised
from study.errors import StudyError, short

IGNORED = -100
"""The target that torch's ``cross_entropy`` ignores."""
FILLS = {"input_ids_BT": 0, "targets_BT": IGNORED, "real_BT": False}
"""The tensors of a batch, and what fills a row that is shorter than others."""
WINDOW = 1000
"""Examples that :meth:`TokenTable.packed` looks at together, as LLaMA-Factory and TRL do."""


@dataclass(frozen=True)
class TokenBatch:
    """``B`` sequences of ``T`` tokens, padded on the right.

    - ``targets_BT[b, t]``: the token that position ``t`` must predict, ``input_ids_BT[b, t + 1]``,
      if that token is learned; otherwise -100;
    - ``real_BT``: False on padding. Causal attention hides padding on the right from real tokens,
      so no attention mask is needed;
    - ``lengths``: of the examples that follow one another in each row, before its padding.
    """

    input_ids_BT: Tensor
    targets_BT: Tensor
    real_BT: Tensor
    lengths: Sequence[Sequence[int]]

    @property
    def supervised(self) -> int:
        """The number of tokens in the loss. On a GPU this blocks: call it before :meth:`to`."""
        return int((self.targets_BT != IGNORED).sum())

    @classmethod
    def stacked(cls, batches: Sequence["TokenBatch"]) -> "TokenBatch":
        tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in FILLS}
        return cls(**tensors, lengths=[row for batch in batches for row in batch.lengths])

    @classmethod
    def in_rows(cls, batches: Sequence["TokenBatch"]) -> "TokenBatch":
        """The real tokens of each batch in one row, ``[len(batches), N]``."""
        tensors = {
            name: pad_sequence([getattr(one, name)[one.real_BT] for one in batches], True, fill)
            for name, fill in FILLS.items()
        }
        lengths = [[n for row in batch.lengths for n in row] for batch in batches]
        return cls(**tensors, lengths=lengths)

    def trimmed(self, multiple: int = 1) -> "TokenBatch":
        """The same batch with the fewest columns that hold its tokens, and are a ``multiple``."""
        longest = -(-max(map(sum, self.lengths)) // multiple) * multiple
        return replace(self, **{name: getattr(self, name)[:, :longest] for name in FILLS})


@dataclass(frozen=True, eq=False)
class TokenTable:
    """``N`` rows of the examples of :func:`~study.data.tokens.tokenised`, padded only in a batch.

    - ``tokens``, ``learned``, ``starts``: the arrays of all examples. Example ``i`` is
      ``tokens[starts[i] : starts[i + 1]]``, of at most ``sequence_length`` tokens;
    - ``examples``: the examples of each row. They are several with ``data.sample_packing``.
    """

    tokens: np.ndarray
    learned: np.ndarray
    starts: np.ndarray
    examples: Sequence[Sequence[int]]
    sequence_length: int
    padding_id: int

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def supervised(self) -> int:
        """The number of tokens in the loss of one pass. The first token of an example has none."""
        return sum(int(self.example(n)[1][1:].sum()) for row in self.examples for n in row)

    def example(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = self.starts[example : example + 2]
        return self.tokens[start:end], self.learned[start:end]

    def packed(self) -> "TokenTable":
        """The same examples, as many in a row as fit into ``sequence_length`` tokens.

        First fit, decreasing, in each window of :data:`WINDOW` examples: each goes, the longest
        first, to the first row that has room for it.
        """
        examples = [example for row in self.examples for example in row]
        lengths = np.diff(self.starts)
        packed: list[list[int]] = []
        for begin in range(0, len(examples), WINDOW):
            rows: list[list[int]] = []
            room: list[int] = []
            window = sorted(examples[begin : begin + WINDOW], key=lambda example: -lengths[example])
            for example in window:
                length = int(lengths[example])
                fits = (row for row, free in enumerate(room) if free >= length)
                row = next(fits, len(rows))
                if row == len(rows):
                    rows.append([])
                    room.append(self.sequence_length)
                rows[row].append(example)
                room[row] -= length
            packed += rows
        return replace(self, examples=packed)

    def batch(self, seed: int, step: int, batch_size: int) -> TokenBatch:
        """The batch of a step, counted in batches from 0. It depends on the arguments only.

        Each epoch is a permutation keyed by (seed, epoch), so the batch of any step can be computed
        without the steps before it. A batch may span epochs and be larger than the table.
        transformers ends an epoch with a smaller batch; here rows of the next epoch fill it.
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

    def question(self, row: int) -> list[int]:
        """The tokens before the last learned part of the row: its target, or the assistant's last
        turn."""
        ids, learned = self.example(self.examples[row][0])
        last = np.flatnonzero(learned)[-1]
        before = np.flatnonzero(~learned[:last])
        return ids[: before[-1] + 1].tolist() if len(before) else []

    def _rows(self, rows: Sequence[int]) -> TokenBatch:
        shape = (len(rows), self.sequence_length)
        input_ids_BT = np.full(shape, self.padding_id, dtype=np.int64)
        targets_BT = np.full(shape, IGNORED, dtype=np.int64)
        real_BT = np.zeros(shape, dtype=bool)
        lengths: list[list[int]] = []
        for b, row in enumerate(rows):
            lengths.append([])
            for example in self.examples[row]:
                ids, learned = self.example(example)
                start = sum(lengths[b])
                end = start + len(ids)
                input_ids_BT[b, start:end] = ids
                # The first token of an example has none before it to be predicted from.
                targets_BT[b, start : end - 1] = np.where(learned[1:], ids[1:], IGNORED)
                real_BT[b, start:end] = True
                lengths[b].append(len(ids))
        return TokenBatch(
            torch.from_numpy(input_ids_BT),
            torch.from_numpy(targets_BT),
            torch.from_numpy(real_BT),
            lengths,
        )


@dataclass(frozen=True, eq=False)
class Questions:
    """Held-out questions: token ids of each context, as in the loss, and each target's text."""

    contexts: Sequence[list[int]]
    targets: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    padding_id: int
    eos_token_id: int | None

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every question once, in order: token ids ``[B, L]`` and a mask, True on real ones.
        Padding is on the left, so that an answer continues its question."""
        for start in range(0, len(self.contexts), batch_size):
            rows = self.contexts[start : start + batch_size]
            lengths_B1 = torch.tensor([[len(row)] for row in rows])
            longest = int(lengths_B1.max())
            ids = [[self.padding_id] * (longest - len(row)) + row for row in rows]
            yield torch.tensor(ids), torch.arange(longest) >= longest - lengths_B1

    def exact_match(self, answers: Sequence[Sequence[int]]) -> float:
        """:func:`exact_match` of the token ids of one answer per question, cut at the first eos."""
        before_eos = [takewhile(lambda token: token != self.eos_token_id, ids) for ids in answers]
        texts = [self.tokenizer.decode(list(ids), skip_special_tokens=True) for ids in before_eos]
        return exact_match(texts, self.targets)


def exact_match(answers: Sequence[str], targets: Sequence[str]) -> float:
    """The share of answers whose first label is their target, ignoring case.

    The labels are all targets. The rule is FinLoRA's (``test/test_dataset.py``). If several labels
    start at the same character, the longest counts: 0.12, not 0.1.
    """
    plain = [target.strip().lower() for target in targets]
    longest_first = sorted(map(re.escape, set(plain)), key=len, reverse=True)
    labels = [re.search("|".join(longest_first), answer.lower()) for answer in answers]
    right = [found and found[0] == target for found, target in zip(labels, plain, strict=True)]
    return sum(map(bool, right)) / len(right)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training and held-out examples, the latter also as questions, and the content hash. ``rows``:
    their counts and format, for the record."""

    train: TokenTable
    heldout: TokenTable
    questions: Questions
    fingerprint: str
    rows: Mapping[str, int | str | None]

    def check_tokens(self, vocabulary: int, named: str) -> None:
        """A tokenizer may know more tokens than its model: Gemma's has one for images."""
        # Both sides share their arrays.
        highest = max(int(self.train.tokens.max(initial=0)), self.train.padding_id)
        if highest >= vocabulary:
            text = self.questions.tokenizer.decode([highest])
            why = f"the data or its padding has {short(text)}, token {highest} of the tokenizer"
            raise StudyError(f"{why}, but {named} has {vocabulary} embeddings: remove it")


def build_corpus(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, eos_token_id: int | None
) -> Corpus:
    """Load, split and tokenise the data set that ``config`` names.

    ``eos_token_id`` follows every target that leaves room for it. Rows with nothing to learn are
    dropped before the split.
    """
    length = config.sequence_length
    loaded = load_rows(config, lambda: tokenizer)
    arrays = tokenised(loaded.rows, Encoder(tokenizer, eos_token_id, length))
    places = np.arange(len(arrays["index"]))
    if config.excess_length_strategy == "drop":
        places = places[~arrays["cut"]]
    kept = [loaded.rows[n] for n in arrays["index"][places]]
    if len(kept) < len(loaded.rows) and len(set(kept)) < 2:
        raise StudyError(
            f"{len(loaded.rows) - len(kept)} of {len(loaded.rows)} rows have no target in their "
            f"first data.sequence_length={length} tokens, so too few are left: raise it"
        )
    sides = [places[side] for side in split_places(kept, config.heldout)]
    padding_id = next((i for i in (tokenizer.pad_token_id, eos_token_id) if i is not None), 0)
    of_all = arrays["tokens"], arrays["learned"], arrays["starts"]
    train, heldout = (
        TokenTable(*of_all, [[place] for place in places], length, padding_id) for places in sides
    )
    answers = [_answer(loaded.rows[arrays["index"][n]], arrays["cut"][n]) for n in sides[1]]
    asked = [(heldout.question(n), said) for n, said in enumerate(answers) if said is not None]
    asked.sort(key=lambda question: len(question[0]))  # a batch of questions has little padding
    contexts, targets = [context for context, _ in asked], [said for _, said in asked]
    questions = Questions(contexts, targets, tokenizer, padding_id, eos_token_id)
    rows = {
        "train": len(train),
        "heldout": len(heldout),
        "supervised": train.supervised,
        "cut": int(arrays["cut"][np.concatenate(sides)].sum()),
        "dropped": len(loaded.rows) - len(kept),
        "format": loaded.format,
    }
    if config.sample_packing:
        train = train.packed()
        rows["packed"] = len(train)
    return Corpus(train, heldout, questions, fingerprint(loaded.rows), rows)


def _answer(row: Row, is_cut: bool) -> str | None:
    if isinstance(row, Example):
        return row.target
    return row.answer if isinstance(row, Conversation) and not is_cut else None


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch. Cached, since every step and every cell of a seed reads it.

    It sorts raw random numbers, because a stored cell must be reproducible after an upgrade: numpy
    keeps the raw stream of a bit generator fixed, but not ``Generator.permutation``.
    """
    key = np.random.SeedSequence([seed % 2**64, epoch])  # numpy rejects negative seeds
    return np.argsort(np.random.Philox(key).random_raw(size), kind="stable")
