"""The frozen base: SmolLM2, Gemma 3, a causal LM from a folder or the hub, or a tiny Llama.

- :func:`describe`: a model's identity, limits and layers, without its weights;
- :func:`load_base`: the model;
- :func:`load_tokenizer`: its tokenizer.

Weights come from safetensors files only: nothing is unpickled, and code in a checkpoint is not run.
"""

from study.models.base import FrozenBase, load_base
from study.models.card import WITH_EXPERTS, Coverage, ModelCard, coverage, describe, load_tokenizer
