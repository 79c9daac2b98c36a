"""What can be known of a model without loading its weights: its identity, its limits and the layers to adapt."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerFast

from study.config import ModelConfig
from study.errors import StudyError, unknown
from study.models import hf, quantised, smollm2, tiny
from study.vocabulary.sources import MODELS

_UNLIMITED = 1 << 30  # tokens: a family that has no longest sequence (ALiBi, state spaces)


@dataclass(frozen=True)
class ModelCard:
    """What planning needs to know of a model.

    ``name`` is ``smollm2``, ``tiny``, or the folder or hub name as the user gave it. ``fingerprint`` says which weights
    these are: sha256 of the GGUF (smollm2), of shape and seed (tiny), of config.json and the weight files (a folder),
    or the commit (hub); and what they were quantised to, if anything. ``tokenizer_fingerprint`` is the sha256 of the
    tokenizer. ``max_length`` is the longest sequence in tokens. ``note`` is what a reader of results must know of the
    weights, or empty. ``linears`` are the module paths of every linear layer in the transformer blocks (``nn.Linear``
    or transformers' ``Conv1D``), without embeddings and head, ``shapes`` their ``(D, O)``; ``parameters`` and ``head``
    count weights (:class:`hf.Anatomy`).
    """

    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    max_length: int
    note: str
    linears: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    parameters: int
    head: int


def describe(config: ModelConfig) -> ModelCard:
    """The card of the model that ``config`` names; fetches SmolLM2 where it isn't on this machine yet.

    The second time it costs under a millisecond, for as long as no file of the model changes.

    Raises :class:`StudyError` for a name or path that leads nowhere, weights that are no safetensors or are damaged
    (as far as headers and lengths tell), a checkpoint that is no causal language model of transformers, and bits that
    it can't be held in.
    """
    card = _plain_card(config)
    if config.quant_bits is None:
        return card
    quantised.check_installed()
    note = ", ".join(
        filter(None, [card.note, f"block linears in {config.quant_bits} bits by bitsandbytes"])
    )
    return replace(
        card, fingerprint=f"{card.fingerprint}+{quantised.SCHEMES[config.quant_bits]}", note=note
    )


def _plain_card(config: ModelConfig) -> ModelCard:
    """The card but for ``quant_bits``, which a checkpoint that is quantised already must agree with."""
    checkpoint = checkpoint_of(config)
    if checkpoint is None:
        return _tiny_card()
    files = [(entry.name, entry.stat()) for entry in checkpoint.folder.iterdir() if entry.is_file()]
    state = frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
    return _checkpoint_card(checkpoint, state, config.quant_bits)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The model's tokenizer, a fresh one each time. Raises :class:`StudyError` as :func:`describe` does."""
    checkpoint = checkpoint_of(config)
    return tiny.tokenizer() if checkpoint is None else hf.load_tokenizer(checkpoint)


def where_from(config: ModelConfig) -> str | None:
    """What ``from_pretrained`` loads the model by: a hub name or a folder; None for ``tiny``, which is on no disk."""
    checkpoint = checkpoint_of(config)
    return None if checkpoint is None else checkpoint.path or str(checkpoint.folder)


def checkpoint_of(config: ModelConfig) -> hf.Checkpoint | None:
    """Where the model's files are; ``None`` for ``tiny``, which has none."""
    if config.name not in MODELS:
        raise unknown("model", config.name, MODELS)
    if config.name == "tiny":
        if config.path:
            raise StudyError(
                f"model=tiny is made in memory and takes no model.path ({config.path!r}): use model=hf for it"
            )
        return None
    if config.name == "smollm2" and not config.path:
        return hf.Checkpoint(smollm2.fetch_smollm2(), named="model=smollm2")
    return hf.find(config.path)


@lru_cache
def _tiny_card() -> ModelCard:
    return ModelCard(
        name="tiny",
        fingerprint=tiny.fingerprint(),
        tokenizer_fingerprint=_tokenizer_fingerprint(tiny.tokenizer()),
        max_length=tiny.MAX_LENGTH,
        note="random weights",
        **vars(hf.anatomy(tiny.config(), "model=tiny")),
    )


@lru_cache
def _checkpoint_card(
    checkpoint: hf.Checkpoint, files: frozenset[tuple[str, int, int]], quant_bits: int | None
) -> ModelCard:
    """The card of a folder; ``files`` (name, size, time) are an argument so that a changed file is looked at anew."""
    hf.weight_files(checkpoint)  # the cheap and likely mistakes first
    config = hf.read_config(checkpoint, quant_bits)
    anatomy = hf.anatomy(config, checkpoint.named, quant_bits)
    tokenizer = hf.load_tokenizer(checkpoint)
    is_smollm2 = checkpoint.path is None
    return ModelCard(
        name=checkpoint.path or "smollm2",
        fingerprint=smollm2.GGUF_SHA256 if is_smollm2 else hf.fingerprint(checkpoint),
        tokenizer_fingerprint=_tokenizer_fingerprint(tokenizer),
        max_length=_max_length(config, tokenizer),
        note=smollm2.NOTE if is_smollm2 else "",
        **vars(anatomy),
    )


def _max_length(config: Any, tokenizer: PreTrainedTokenizerFast) -> int:
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(min(positions or tokenizer.model_max_length, _UNLIMITED))


def _tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over all that turns text into ids; the chat template does not, and may be edited freely."""
    content = {
        "backend": json.loads(tokenizer.backend_tokenizer.to_str()),
        "special": {role: str(token) for role, token in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
