"""A model's identity, limits and layers, without its weights."""

import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerFast

from study.config import ModelConfig
from study.errors import StudyError, short
from study.models import quantised
from study.models.anatomy import Anatomy, anatomy
from study.models.sources import UnloadedModel, find_model

_UNLIMITED = 1 << 30
"""Tokens; for families without a longest sequence (ALiBi, state-space models)."""


@dataclass(frozen=True)
class ModelCard(Anatomy):
    """What planning needs to know about a model, beside its layers and sizes.

    - ``name``: ``smollm2``, ``tiny``, or the folder or hub name as the user gave it;
    - ``fingerprint``: identifies the weights: sha256 of the GGUF file (smollm2), of shape and seed
      (tiny), of config.json and the weight files (a folder), or the commit (the hub); followed by
      the quantisation, if any;
    - ``tokenizer_fingerprint``: sha256 of the tokenizer;
    - ``max_length``: the longest sequence, in tokens;
    - ``note``: about the weights, for readers of results; may be empty.
    """

    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    max_length: int
    note: str


def describe(config: ModelConfig) -> ModelCard:
    """The card of the model that ``config`` names. SmolLM2 is fetched if it is not in the cache.

    The result is cached until a file of the model changes; a cached call takes under 1 ms.

    Raises :class:`StudyError` for a name or path that does not lead to a model, weights that are
    not safetensors or are damaged (judging by headers and lengths), a checkpoint that is not a
    causal language model of transformers, and ``quant_bits`` that can't hold its weights.
    """
    model = find_model(config)
    card = _card(model, model.state(), config.quant_bits)
    if config.quant_bits is None:
        return card
    quantised.check_installed()
    notes = (card.note, f"block linears in {config.quant_bits} bits by bitsandbytes")
    return replace(
        card,
        fingerprint=f"{card.fingerprint}+{quantised.SCHEMES[config.quant_bits]}",
        note=", ".join(note for note in notes if note),
    )


@lru_cache
def _card(model: UnloadedModel, _: Hashable, quant_bits: int | None) -> ModelCard:
    """The card without the quantisation. The model's state is a key of the cache."""
    config = model.config(quant_bits)
    tokenizer = model.tokenizer()
    layers = anatomy(config, model.named, quant_bits)
    _check_tokens(tokenizer, layers.vocabulary, model.named)
    return ModelCard(
        name=model.name,
        fingerprint=model.fingerprint(),
        tokenizer_fingerprint=_tokenizer_fingerprint(tokenizer),
        max_length=_max_length(config, tokenizer, model.named),
        note=model.note,
        **vars(layers),
    )


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The model's tokenizer, a new one on each call.

    Raises :class:`StudyError` as :func:`describe` does.
    """
    return find_model(config).tokenizer()


def where_from(config: ModelConfig) -> str | None:
    """The argument that loads the model with ``from_pretrained``: a hub name or a folder.

    None for ``tiny``, which is made in memory.
    """
    return find_model(config).where


def _check_tokens(tokenizer: PreTrainedTokenizerFast, vocabulary: int, named: str) -> None:
    """Raises :class:`StudyError` if a token has no embedding.

    Among the tokens added for other uses only those count that end or pad a text: Gemma has one for
    images.
    """
    ids = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    highest = max(ids.values(), default=0)
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    highest = max(highest, *(token for token in special if token is not None), 0)
    if highest >= vocabulary:
        raise StudyError(
            f"{named}: its tokenizer has token {highest}, but the model has {vocabulary} "
            "embeddings: save the tokenizer of this model in the folder"
        )


def _max_length(config: Any, tokenizer: PreTrainedTokenizerFast, named: str) -> int:
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    longest = positions or tokenizer.model_max_length
    if type(longest) not in (int, float) or not longest >= 2:
        raise StudyError(
            f"{named}: the longest sequence is {short(longest)} tokens "
            "(max_position_embeddings in config.json): it must be at least 2"
        )
    return int(min(longest, _UNLIMITED))


def _tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of everything that turns text into ids. The chat template is not part of it."""
    content = {
        "backend": json.loads(tokenizer.backend_tokenizer.to_str()),
        "special": {role: str(token) for role, token in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
