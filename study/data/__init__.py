"""Supervised text for fine-tuning: ``{context, target}`` examples, their split and content hash, and token batches."""

from study.data.batches import IGNORED, Corpus, TokenBatch, TokenTable, build_corpus
from study.data.examples import Example, fingerprint, load_examples, split

__all__ = [
    "IGNORED",
    "Corpus",
    "Example",
    "TokenBatch",
    "TokenTable",
    "build_corpus",
    "fingerprint",
    "load_examples",
    "split",
]
