"""Examples to tokens: the tokens of each row, those that are learned, and what did not fit.

Each kind of example has its rule. A row has at most ``length`` tokens.

- :class:`~study.data.examples.Example`: context, target and eos. The target is cut on the right,
  then the context on the left, after its bos. There is no chat template, as in FinLoRA and FinGPT;
- :class:`~study.data.examples.Conversation`: the text as it is; only the tokens that overlap a turn
  of the assistant are learned. It is cut on the right. A row in which no turn is left is dropped;
- :class:`~study.data.examples.Document`: bos, if the tokenizer adds one, text and eos, all learned.
  It is cut on the right. A blank text is dropped.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from study.data.examples import Conversation, Document, Example, Row
from study.errors import StudyError, no_panic, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK, _CHARACTERS = 1000, 1 << 19
"""Examples and characters tokenised at once: enough for the tokenizer's threads. A token takes
about 200 bytes meanwhile."""

_PER_TOKEN = 100
"""Characters. Of a text that is longer per token that it may have, only the part that counts is
tokenised. Few tokens are as long."""

VERSION = 3
"""The version of the tokenisation. Increase it when the arrays change: they are cached."""


class Tokenised(NamedTuple):
    """One row: its tokens, which of them are learned, and whether some were cut off."""

    ids: list[int]
    learned: list[bool]
    cut: bool


class Encoder(NamedTuple):
    """A tokenizer, the eos that ends a text (None: none does), and the most tokens of a row."""

    tokenizer: "PreTrainedTokenizerBase"
    eos: int | None
    length: int

    @property
    def characters(self) -> int:
        """The most characters of a text that are tokenised."""
        return _PER_TOKEN * self.length

    def __call__(self, texts: list[str], special: bool, **options: Any) -> Any:
        """The tokenizer's encoding of ``texts``. ``special``: with the special tokens it adds."""
        # A tokenizer would cut the end of a question, so it cuts nothing. ``verbose=False``
        # silences the warning about long texts.
        try:
            with no_panic():
                return self.tokenizer(
                    texts,
                    add_special_tokens=special,
                    padding=False,
                    truncation=False,
                    return_attention_mask=False,
                    verbose=False,
                    **options,
                )
        except Exception as error:  # what it raises depends on the parts of the tokenizer
            raise StudyError(
                f"the model's tokenizer fails on the data ({one_line(error)}): use the "
                "tokenizer.json that was published with the model"
            ) from None


def tokenised(rows: Sequence[Row], encoder: Encoder) -> dict[str, np.ndarray]:
    """The tokens of ``rows``, which are of one kind, as arrays by name.

    - ``tokens``: int32 [total], those of all ``N`` rows that were not dropped;
    - ``learned``: bool [total], whether a token is learned;
    - ``starts``: int64 [N + 1]; row ``n`` is ``tokens[starts[n] : starts[n + 1]]``;
    - ``cut``: bool [N], whether tokens of the row were cut off;
    - ``index``: int64 [N], its place in ``rows``.
    """
    tokens, learned, lengths, cut, index = [], [], [0], [], []
    place = 0
    for chunk in _chunks(rows, encoder.characters):
        kept = [
            (place + n, row)
            for n, row in enumerate(_KINDS[type(chunk[0])](chunk, encoder))
            if any(row.learned[1:])  # the first token has none before it to be predicted from
        ]
        place += len(chunk)
        tokens.append(np.array([i for _, row in kept for i in row.ids], dtype=np.int32))
        learned.append(np.array([is_ for _, row in kept for is_ in row.learned], dtype=bool))
        lengths += [len(row.ids) for _, row in kept]
        cut += [row.cut for _, row in kept]
        index += [n for n, _ in kept]
    return {
        "tokens": np.concatenate(tokens),
        "learned": np.concatenate(learned),
        "starts": np.cumsum(lengths, dtype=np.int64),
        "cut": np.array(cut, dtype=bool),
        "index": np.array(index, dtype=np.int64),
    }


def chosen(arrays: dict[str, np.ndarray], places: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of :func:`tokenised` of some rows, in the order of ``places``."""
    starts, ends = arrays["starts"][places], arrays["starts"][1:][places]
    of_rows = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    return {
        "tokens": np.concatenate([arrays["tokens"][row] for row in of_rows]),
        "learned": np.concatenate([arrays["learned"][row] for row in of_rows]),
        "starts": np.concatenate([[0], np.cumsum(ends - starts)]),
        "cut": arrays["cut"][places],
        "index": arrays["index"][places],
    }


def _chunks(rows: Sequence[Row], most: int) -> Iterator[Sequence[Any]]:
    """The rows in order: at most ``_CHUNK`` at once, and no more once they have ``_CHARACTERS``,
    of which ``most`` count of each text.
    """
    first = size = 0
    for index, row in enumerate(rows):
        if index > first and (index - first == _CHUNK or size > _CHARACTERS):
            yield rows[first:index]
            first, size = index, 0
        size += sum(min(len(text), most) for text in vars(row).values() if isinstance(text, str))
    yield rows[first:]


def _pairs(chunk: Sequence[Example], encoder: Encoder) -> Iterator[Tokenised]:
    most, tokenizer = encoder.characters, encoder.tokenizer
    end = [] if encoder.eos is None else [encoder.eos]
    bos = tokenizer.bos_token_id
    # In place of an empty context, so that the target's first token can be predicted.
    start = [bos] if bos is not None else end
    contexts = encoder([row.context[-most:] for row in chunk], special=True).input_ids
    targets = encoder([row.target[:most] for row in chunk], special=False).input_ids
    for row, asked, target in zip(chunk, contexts, targets, strict=True):
        whole = (asked or start, target + end)
        context, answer = _fit(*whole, encoder.length, bos)
        cut = max(len(row.context), len(row.target)) > most or (context, answer) != whole
        learned = [False] * len(context) + [True] * len(answer)
        yield Tokenised(context + answer, learned, cut)


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


def _conversations(chunk: Sequence[Conversation], encoder: Encoder) -> Iterator[Tokenised]:
    texts = [row.text[: encoder.characters] for row in chunk]
    encoding = encoder(texts, special=False, return_offsets_mapping=True)
    for row, text, ids, places in zip(
        chunk, texts, encoding.input_ids, encoding.offset_mapping, strict=True
    ):
        learned = _overlaps(places[: encoder.length], row.learned)
        cut = len(ids) > encoder.length or len(text) < len(row.text)
        yield Tokenised(ids[: encoder.length], learned, cut)


def _overlaps(places: Sequence[tuple[int, int]], turns: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token overlaps one of ``turns``. Both are ascending places of characters.

    Some tokenizers leave spaces out of a token's place, so that of a token of spaces only its end
    is left.
    """
    found, turn = [], 0
    for first, last in places:
        begin = first if first < last else first - 1
        while turn < len(turns) and turns[turn][1] <= begin:
            turn += 1
        found.append(turn < len(turns) and max(last, begin + 1) > turns[turn][0])
    return found


def _documents(chunk: Sequence[Document], encoder: Encoder) -> Iterator[Tokenised]:
    most, length = encoder.characters, encoder.length
    found = encoder([row.text[:most] for row in chunk], special=True).input_ids
    for row, ids in zip(chunk, found, strict=True):
        if encoder.eos is not None and ids[-1:] != [encoder.eos]:
            ids = [*ids, encoder.eos]
        cut = len(ids) > length or len(row.text) > most
        yield Tokenised(ids[:length], [bool(row.text.strip())] * len(ids[:length]), cut)


_KINDS: dict[type, Callable[[Any, Encoder], Iterator[Tokenised]]] = {
    Example: _pairs,
    Conversation: _conversations,
    Document: _documents,
}
"""How the rows of each kind are tokenised."""
