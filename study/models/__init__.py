"""The frozen base: SmolLM2, Gemma 3, a causal LM from a folder or the hub, or a small Llama."""

from study.models.base import FrozenBase, load_base
from study.models.card import WITH_EXPERTS, Coverage, ModelCard, coverage, describe, load_tokenizer
