"""Supervised text for fine-tuning: ``{context, target}`` examples, their split and content hash, token batches, and
held-out questions to be answered."""

from study.data.batches import IGNORED, Corpus, TokenBatch, TokenTable, build_corpus
from study.data.examples import Example, fingerprint, load_examples, split
from study.data.questions import Questions, exact_match, first_label

__all__ = [
    "IGNORED",
    "Corpus",
    "Example",
    "Questions",
    "TokenBatch",
    "TokenTable",
    "build_corpus",
    "exact_match",
    "fingerprint",
    "first_label",
    "load_examples",
    "split",
]
