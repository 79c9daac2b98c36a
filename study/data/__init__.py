"""Supervised text: examples of a context and a target, token batches, and held-out questions."""

from study.data.batches import IGNORED, Corpus, TokenBatch, TokenTable, build_corpus
from study.data.examples import Example, fingerprint, split
from study.data.questions import Questions, exact_match, first_label
from study.data.sources import load_examples

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
