"""A causal LM in a folder, from the user or the hub. No pickle is opened, and no code is run."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from study.errors import StudyError, short
from study.models import quantised
from study.models.messages import failing
from study.reading import read_object
from study.store.files import file_sha256

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights in one file, or the index of its shards."""

_AGAIN = "fetch or save the model again"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "merges.txt")
"""Config and tokenizer, at the top of a repository."""
_MOST_BYTES = 64 << 20
"""Of a JSON file that is read."""
_ASKS_FOR_MORE = re.compile(
    r'"(transformers_weights|fusion_config)"\s*:\s*(?!null)|"(\w+_implementation)"\s*:\s*"[^"]*/'
)
"""Keys of config.json with which transformers loads other weights, or code from the hub."""
_SMALLEST_TOKENIZER = 16
"""If tokenizer files are missing, transformers may make a tokenizer of special tokens only."""
_SAMPLE = "Sample 1: é, 漢\n"
"""A text that any tokenizer must be able to encode."""


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, with config.json, a tokenizer and safetensors weights.

    - ``name``: in results. ``named``: in errors. ``where``: the argument of ``from_pretrained``;
    - ``commit``: the commit on the hub; None for a folder of the user's. The weights of a hub model
      are fetched when it is loaded;
    - ``sha256``: the fingerprint, if it is not to be computed from the files;
    - ``note``: about the weights, for readers of results.
    """

    folder: Path
    name: str
    named: str
    where: str
    commit: str | None = None
    sha256: str | None = None
    note: str = ""

    def fingerprint(self) -> str:
        """The hub's commit, or the sha256 of config.json and weights."""
        if known := self.commit or self.sha256:
            return known
        files = [self.folder / CONFIG, *self.weight_files()]
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()

    def weight_files(self) -> list[Path]:
        names = [SINGLE] if (self.folder / SINGLE).is_file() else []
        if not names and (self.folder / INDEX).is_file():
            index = read_object(self.folder / INDEX, f"{self.named}: {INDEX}", _AGAIN, _MOST_BYTES)
            names = sorted(set(index.get("weight_map", {}).values()))
        files = [self.folder / name for name in names]
        if not files:
            pickled = any(next(self.folder.glob(pattern), None) for pattern in _PICKLES)
            found = "pickled weights, which are never opened" if pickled else f"no {SINGLE}"
            convert = "give a folder with safetensors weights (save_pretrained writes them)"
            raise StudyError(f"{self.named} has {found}: {convert}")
        for file in files:
            check_weights(file, f"{self.named}: weight file {file.name}")
        return files

    def config(self, quant_bits: int | None = None) -> Any:
        with failing(
            f"{self.named}: {CONFIG} can't be used",
            "give a causal language model that transformers supports",
        ):
            config = AutoConfig.from_pretrained(
                self.folder, trust_remote_code=False, local_files_only=True
            )
        quantisation = getattr(config, "quantization_config", None)
        if quantisation is not None:
            if not isinstance(quantisation, dict):
                quantisation = quantisation.to_dict()
            quantised.check_checkpoint(self.named, quantisation, quant_bits)
        return config

    def tokenizer(self) -> PreTrainedTokenizerFast:
        fix = "save its tokenizer.json in the same folder"
        with failing(f"{self.named} has no usable tokenizer", fix):
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=False, local_files_only=True
            )
            tokenizer.decode(tokenizer(_SAMPLE).input_ids)
            is_fast = isinstance(tokenizer, PreTrainedTokenizerFast)
            if not is_fast or len(tokenizer) < _SMALLEST_TOKENIZER:
                raise ValueError("its files are missing, or can only be read by Python code")
        return tokenizer

    def load(self, device: torch.device, dtype: torch.dtype, quant_bits: int | None) -> Any:
        """The model on ``device`` with weights in ``dtype``. A hub model's weights are fetched.
        With ``quant_bits``, each weight of a block linear is quantised as it is read."""
        if self.commit:
            _fetch(self.name, ["model*.safetensors", INDEX], self.commit)
        config = self.config(quant_bits)
        quantisation = quantised.bnb_config(quant_bits, dtype) if quant_bits else None
        with (
            failing(
                f"{self.named} can't be loaded on {device} in {dtype}",
                f"{_AGAIN}, or try precision=bf16, model.quant_bits=4 or another device",
            ),
            torch.random.fork_rng(devices=[]),
        ):
            # Without attn_implementation transformers takes sdpa, and eager for the few families
            # that sdpa computes wrongly (Gemma 2). Asking for sdpa fails for those.
            model, report = AutoModelForCausalLM.from_pretrained(
                self.folder,
                config=config,
                dtype=dtype,
                device_map=device,  # directly: weights for a GPU are not held in the host's memory
                quantization_config=quantisation,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report, by name
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        if wrong := sorted({*report["missing_keys"], *(k[0] for k in report["mismatched_keys"])}):
            raise StudyError(
                f"{self.named}: {len(wrong)} weights of {type(model).__name__} are missing or have "
                f"another shape than {CONFIG} says ({short(wrong[0])}): give a complete checkpoint"
            )
        return model


def check_weights(file: Path, named: str) -> None:
    """Raise unless ``file`` is a whole safetensors file with at least one tensor."""
    if not file.exists():
        raise StudyError(f"{named} does not exist: {_AGAIN}")
    with failing(f"{named} is damaged", _AGAIN), safe_open(file, framework="pt") as opened:
        if not opened.keys():
            raise ValueError("it holds no tensor")


def find(path: str) -> ModelFolder:
    """The checkpoint that ``model.path`` names: a folder, or a model on the hub."""
    named = f"model.path={short(path, 200)}"
    folder = Path(os.path.expanduser(path))
    commit = None
    if not os.path.isdir(folder):
        if os.path.exists(folder) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
            place = f"a folder with {CONFIG} and *.safetensors, or a hub name"
            raise StudyError(f"{named} is no folder: give {place}")
        folder = snapshot(path)
        commit = folder.name
    # The files that transformers would load.
    if (folder / "adapter_config.json").exists():
        keys = "give the adapter as adapter.path, and its base as model.path"
        raise StudyError(f"{named} has an adapter_config.json: {keys}")
    fix = "give the folder that save_pretrained wrote"
    config = read_object(folder / CONFIG, f"{named}: {CONFIG}", fix, _MOST_BYTES)
    if found := _ASKS_FOR_MORE.search(json.dumps(config)):
        key = f"{CONFIG} has {found[1] or found[2]}"
        raise StudyError(f"{named}: {key}, which loads other weights or code: remove it")
    return ModelFolder(folder, path, named, path, commit)


@lru_cache
def snapshot(name: str) -> Path:
    """The folder of the hub model ``name`` with config and tokenizer, named by the commit."""
    return _fetch(name, _SMALL_FILES)


def _fetch(name: str, patterns: Sequence[str], commit: str | None = None) -> Path:
    """Add files of a hub model to its snapshot folder; files already there are not fetched."""
    with failing(
        f"model.path={name!r} is no folder, and can't be fetched from the hub",
        "check the name and the network; if it is gated or private, accept its terms on its page "
        "and run `hf auth login`; or give a folder",
    ):
        return Path(
            snapshot_download(
                name, revision=commit, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            )
        )
