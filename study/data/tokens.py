"""Examples to tokens: the tokens of each row, which are learned, and which did not fit.

A row has at most ``length`` tokens.

- :class:`~study.data.examples.Example`: context, target and eos, without a chat template, as in
  FinLoRA. The target is cut on the right, then the context on the left, after its bos;
- :class:`~study.data.examples.Conversation`: the text; tokens that overlap a turn of the assistant
  are learned. Cut on the right, and dropped if no turn is left;
- :class:`~study.data.examples.Document`: bos, if the tokenizer adds one, text and eos, all learned.
  Cut on the right. A blank text is dropped.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from study.data.examples import Conversation, Document, Example, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 256
"""Rows tokenised at once: enough for the tokenizer's threads."""

Tokenised = tuple[list[int], list[bool], bool]
"""One row: its tokens, which of them are learned, and whether some were cut off."""


class Encoder(NamedTuple):
    """A tokenizer, the eos that ends a text (None: none does), and the most tokens of a row."""

    tokenizer: "PreTrainedTokenizerBase"
    eos: int | None
    length: int

    def __call__(self, texts: list[str], special: bool, **options: Any) -> Any:
        """The tokenizer's encoding of ``texts``. ``special``: with the special tokens it adds."""
        # A tokenizer would cut the end of a question, so it cuts nothing. ``verbose=False``
        # silences the warning about long texts.
        options |= {"padding": False, "truncation": False, "return_attention_mask": False}
        return self.tokenizer(texts, add_special_tokens=special, verbose=False, **options)


def tokenised(rows: Sequence[Row], encoder: Encoder) -> dict[str, np.ndarray]:
    """The tokens of ``rows``, which are of one kind, as arrays by name.

    - ``tokens``: int32 [total], those of all ``N`` rows that were not dropped;
    - ``learned``: bool [total], whether a token is learned;
    - ``starts``: int64 [N + 1]; row ``n`` is ``tokens[starts[n] : starts[n + 1]]``;
    - ``cut``: bool [N], whether tokens of the row were cut off;
    - ``index``: int64 [N], its place in ``rows``.
    """
    of_kind = _KINDS[type(rows[0])]
    tokens, learned = [np.empty(0, np.int32)], [np.empty(0, bool)]
    lengths, cut, index = [0], [], []
    for start in range(0, len(rows), _CHUNK):
        found = of_kind(rows[start : start + _CHUNK], encoder)
        for place, (ids, is_learned, is_cut) in enumerate(found, start):
            if any(is_learned[1:]):  # the first token has none before it to be predicted from
                tokens.append(np.array(ids, np.int32))
                learned.append(np.array(is_learned, bool))
                lengths.append(len(ids))
                cut.append(is_cut)
                index.append(place)
    return {
        "tokens": np.concatenate(tokens),
        "learned": np.concatenate(learned),
        "starts": np.cumsum(lengths, dtype=np.int64),
        "cut": np.array(cut, bool),
        "index": np.array(index, np.int64),
    }


def _pairs(chunk: Sequence[Example], encoder: Encoder) -> Iterator[Tokenised]:
    end = [] if encoder.eos is None else [encoder.eos]
    bos = encoder.tokenizer.bos_token_id
    # It replaces an empty context, so that the target's first token can be predicted.
    start = [bos] if bos is not None else end
    contexts = encoder([row.context for row in chunk], special=True).input_ids
    targets = encoder([row.target for row in chunk], special=False).input_ids
    for asked, target in zip(contexts, targets, strict=True):
        context, answer = asked or start, (target + end)[: encoder.length - 1]
        excess = len(context) + len(answer) - encoder.length
        is_cut = excess > 0 or len(answer) < len(target + end)
        if excess > 0:
            kept = context[:1] if context[0] == bos else []
            context = kept + context[excess + len(kept) :]
        yield context + answer, [False] * len(context) + [True] * len(answer), is_cut


def _conversations(chunk: Sequence[Conversation], encoder: Encoder) -> Iterator[Tokenised]:
    texts, length = [row.text for row in chunk], encoder.length
    encoding = encoder(texts, special=False, return_offsets_mapping=True)
    for row, ids, places in zip(chunk, encoding.input_ids, encoding.offset_mapping, strict=True):
        yield ids[:length], _overlaps(places[:length], row.learned), len(ids) > length


def _overlaps(places: Sequence[tuple[int, int]], turns: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token overlaps one of ``turns``. Both are ascending places of characters. Some
    tokenizers give a token of spaces an empty place at its end."""
    found, turn = [], 0
    for first, last in places:
        begin = first if first < last else first - 1
        while turn < len(turns) and turns[turn][1] <= begin:
            turn += 1
        found.append(turn < len(turns) and max(last, begin + 1) > turns[turn][0])
    return found


def _documents(chunk: Sequence[Document], encoder: Encoder) -> Iterator[Tokenised]:
    length = encoder.length
    encoded = encoder([row.text for row in chunk], special=True).input_ids
    for row, ids in zip(chunk, encoded, strict=True):
        if encoder.eos is not None and ids[-1:] != [encoder.eos]:
            ids = [*ids, encoder.eos]
        yield ids[:length], [bool(row.text.strip())] * len(ids[:length]), len(ids) > length


_KINDS: dict[type, Callable[[Any, Encoder], Iterator[Tokenised]]] = {
    Example: _pairs,
    Conversation: _conversations,
    Document: _documents,
}
"""How the rows of each kind are tokenised."""
