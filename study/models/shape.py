"""``model=shape``: a model's configuration without its weights, for ``study train --plan``.

``model.path`` is one of :data:`SHAPES`, or a file ``config.json`` of transformers, or its folder.
Its text is cut into bytes, as ``tiny``'s is, so a sequence has as many tokens as it may have.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from study.errors import StudyError, no_panic, short
from study.models import tiny
from study.models.quiet import quiet, quoted
from study.models.received import Tensor
from study.reading import read_object

_LARGEST = 1 << 20
"""Bytes of a config.json. They have a few thousand."""


def _llama(hidden: int, inner: int, layers: int, heads: int, **others: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": False,
        **others,
    }


_LLAMA_3 = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072}

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama(4096, 11008, 32, 32, vocab_size=32000, max_position_embeddings=4096),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, **_LLAMA_3),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, **_LLAMA_3),
}
"""The configurations of models that are often adapted, as they were published."""


@dataclass(frozen=True)
class Shape:
    """A configuration as an :class:`~study.models.sources.UnloadedModel`. ``text``: its JSON."""

    name: str
    text: str
    note: str = "no weights: for plans only"
    where: None = None

    @property
    def named(self) -> str:
        return f"model.path={short(self.name, 200)}"

    def state(self) -> None:
        """Its text is all of it."""

    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def config(self, quant_bits: int | None = None) -> Any:
        """The transformers configuration. Raises :class:`StudyError` for one that is unknown."""
        try:
            with quiet(), no_panic():
                return AutoConfig.for_model(**json.loads(self.text))
        except Exception as error:  # what a family's configuration raises depends on it
            raise StudyError(
                f"{self.named} can't be used ({quoted(error)}): "
                "give the config.json of a causal language model that transformers supports"
            ) from None

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tiny.tokenizer()

    def load(self, device: torch.device, dtype: torch.dtype, quant_bits: int | None) -> Any:
        raise StudyError(f"{self.named} has no weights")


def find(path: str) -> Shape:
    """The shape that ``model.path`` names. Raises :class:`StudyError` if there is none."""
    if path in SHAPES:
        return Shape(path, json.dumps(SHAPES[path], sort_keys=True))
    file = Path(path).expanduser()
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise StudyError(
            f"model.path={short(path, 200)} is no shape: choose from {', '.join(SHAPES)}, or give "
            "a config.json"
        )
    found = read_object(file, f"model.path={short(path, 200)}", "give another", _LARGEST)
    if "model_type" not in found:
        raise StudyError(f"model.path={short(path, 200)} has no model_type: give a config.json")
    return Shape(path, json.dumps(found, sort_keys=True))
