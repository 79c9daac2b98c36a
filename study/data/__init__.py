"""Text to learn: rows of files and other data sets, token batches, and held-out questions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from study.data.examples import Conversation, Document, Example, Row, fingerprint
from study.data.sources import load_rows

if TYPE_CHECKING:
    from study.data.batches import IGNORED, Corpus, TokenBatch, TokenTable, build_corpus


def __getattr__(name: str) -> Any:
    """Names that need torch, on first use: configurations of other tools are read without it."""
    if name in ("IGNORED", "Corpus", "TokenBatch", "TokenTable", "build_corpus"):
        return getattr(import_module("study.data.batches"), name)
    raise AttributeError(f"module 'study.data' has no attribute {name!r}")
