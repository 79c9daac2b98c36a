"""Text to learn: rows of files and other data sets, token batches, and held-out questions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from study.data.examples import Conversation, Document, Example, Row, fingerprint, split
from study.data.sources import Loaded, load_examples, load_rows

if TYPE_CHECKING:
    from study.data.batches import IGNORED, Corpus, TokenBatch, TokenTable, build_corpus
    from study.data.questions import Questions, exact_match, first_label

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

_WITH_TORCH = {
    "study.data.batches": ("IGNORED", "Corpus", "TokenBatch", "TokenTable", "build_corpus"),
    "study.data.questions": ("Questions", "exact_match", "first_label"),
}


def __getattr__(name: str) -> Any:
    """What needs torch, on first use: configurations of other tools are read without it."""
    for module, names in _WITH_TORCH.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'study.data' has no attribute {name!r}")
