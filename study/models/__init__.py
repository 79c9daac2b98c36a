"""The frozen base: SmolLM2, any Hugging Face causal LM by folder or name, or a tiny random Llama.

``describe`` says what a model is without loading its weights (planning asks it a thousand times), ``load_base`` loads
them, ``load_tokenizer`` reads the tokenizer. Weights come from safetensors only: nothing is unpickled and no code of
a checkpoint is run.
"""

from study.models.base import FrozenBase, load_base
from study.models.card import ModelCard, describe, load_tokenizer, where_from
from study.models.smollm2 import fetch_smollm2

__all__ = [
    "FrozenBase",
    "ModelCard",
    "describe",
    "fetch_smollm2",
    "load_base",
    "load_tokenizer",
    "where_from",
]
