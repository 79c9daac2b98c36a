"""Text to learn: rows of files and other data sets, token batches, and held-out questions."""

from study.data.examples import Conversation, Document, Example, Row, fingerprint
from study.data.sources import load_rows
