"""Examples of three kinds: their content hash, and their split into training and held-out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from study.errors import StudyError


@dataclass(frozen=True)
class Example:
    """A question and its answer. The model reads ``context + target`` and learns ``target``."""

    context: str
    target: str


@dataclass(frozen=True)
class Conversation:
    """A conversation as the chat template writes it. ``learned``: the turns of the assistant, as
    ascending places of characters in ``text``. ``answer``: the text of the last of them."""

    text: str
    learned: tuple[tuple[int, int], ...]
    answer: str


@dataclass(frozen=True)
class Document:
    """A text of which every token is learned."""

    text: str


Row = Example | Conversation | Document
"""A row of a data set. All rows of one data set are of one kind."""


def fingerprint(examples: Sequence[Row]) -> str:
    """The content hash: sha256, in hex, over one line of canonical JSON per example, in order. The
    file's name, white space, other keys and escapes do not count."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_canonical(example))
    return digest.hexdigest()


def split_places(examples: Sequence[Row], heldout: int) -> tuple[list[int], list[int]]:
    """The places of the training and of the held-out examples.

    Held out are the distinct examples with the smallest content hashes, ordered by hash: at most
    ``heldout``, at most a tenth of the distinct ones, at least one. The draw depends neither on the
    seed nor on the order of the file. Copies of held-out examples leave the training side, which
    keeps its order and other duplicates.
    """
    digests = [hashlib.sha256(_canonical(example)).digest() for example in examples]
    place_of = {digest: place for place, digest in enumerate(digests)}
    if len(place_of) < 2:
        raise StudyError("the data has fewer than 2 distinct examples: one is held out, so give 2")
    chosen = sorted(place_of)[: max(1, min(heldout, len(place_of) // 10))]
    out = set(chosen)
    train = [place for place, digest in enumerate(digests) if digest not in out]
    return train, [place_of[digest] for digest in chosen]


def _canonical(example: Row) -> bytes:
    """One line of JSON. Two examples have the same line only if they are equal."""
    return json.dumps(vars(example), sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"
