"""Text to learn: rows of files and other data sets, token batches, and held-out questions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from study.data.examples import Conversation, Document, Example, Row, fingerprint, split
from study.data.sources import Loaded, load_examples, load_rows

if TYPE_CHECKING:
    from study.data.batches import (
        IGNORED,
        Corpus,
        Questions,
        TokenBatch,
        TokenTable,
        build_corpus,
        exact_match,
        first_label,
    )

__all__ = [
    "IGNORED",
    "Conversation",
    "Corpus",
    "Document",
    "Example",
    "Loaded",
    "Questions",
    "Row",
    "TokenBatch",
    "TokenTable",
    "build_corpus",
    "exact_match",
    "fingerprint",
    "first_label",
    "load_examples",
    "load_rows",
    "split",
]


def __getattr__(name: str) -> Any:
    """What needs torch, on first use: configurations of other tools are read without it."""
    if name in __all__:
        return getattr(import_module("study.data.batches"), name)
    raise AttributeError(f"module 'study.data' has no attribute {name!r}")
