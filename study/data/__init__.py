"""Text to learn: rows of files and other data sets, token batches, and held-out questions."""

from study.data.batches import IGNORED, Corpus, TokenBatch, TokenTable, build_corpus
from study.data.examples import Conversation, Document, Example, Row, fingerprint, split
from study.data.questions import Questions, exact_match, first_label
from study.data.sources import Loaded, load_examples, load_rows

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
