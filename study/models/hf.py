"""``model=hf``: a causal language model of transformers, in a folder or on the Hugging Face hub.

A hub model becomes a folder first (the hub's own cache), so everything below :func:`find` knows only folders.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from study.errors import StudyError
from study.models import quantised
from study.models.quiet import quiet
from study.store.cache import file_sha256

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL_FILES = [
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
]  # config and tokenizer, at the top of a hub repository
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT_FIRST = "convert it to safetensors first (model.save_pretrained in transformers, or the hub's convert Space)"


@dataclass(frozen=True)
class Checkpoint:
    """A model's ``folder`` on this machine, and what messages call it.

    ``path`` is ``model.path`` as the user gave it (``None``: the SmolLM2 that the toolkit fetched), ``commit`` the
    hub's where the model is from there.
    """

    folder: Path
    named: str
    path: str | None = None
    commit: str | None = None


def find(path: str | None) -> Checkpoint:
    """The checkpoint that ``model.path`` names; from the hub, only its config and tokenizer are fetched here.

    Raises :class:`StudyError` for no path, a folder that isn't there, and a hub name that can't be had.
    """
    if not path:
        raise StudyError(
            "model=hf needs model.path: a folder, or a hub name such as meta-llama/Llama-3.1-8B-Instruct"
        )
    folder, named = Path(path).expanduser(), f"model.path={path!r}"
    if folder.is_dir():
        return Checkpoint(folder, named, path)
    if folder.exists():
        raise StudyError(
            f"{named} is a file: give the folder that holds config.json and *.safetensors"
        )
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise StudyError(
            f"{named} is not there: give a folder with config.json and *.safetensors, or a hub name"
        )
    folder = _hub_folder(path)
    return Checkpoint(folder, named, path, commit=folder.name)


@lru_cache
def _hub_folder(name: str) -> Path:
    """The hub's snapshot folder, whose name is the commit; asked for once a process, so that a run sees one commit."""
    no_folder = f"model.path={name!r} is no folder here, and"
    try:
        with quiet():
            folder = Path(
                snapshot_download(name, allow_patterns=_SMALL_FILES, ignore_patterns=["*/*"])
            )
        files = {file.name for file in folder.iterdir()}
        if not files & {_SINGLE, _INDEX}:
            files = set(HfApi().list_repo_files(name, revision=folder.name))
    except GatedRepoError:
        raise StudyError(
            f"{no_folder} the hub has it gated: accept its terms on its page and run `hf auth login`, or give a folder"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise StudyError(
            f"{no_folder} the hub has no such public model: check the spelling, give a folder,"
            " or run `hf auth login` if it is private"
        ) from None
    except Exception as error:  # the hub's own or its HTTP client's, by version
        raise StudyError(
            f"{no_folder} the hub can't be reached: check the path or the network, or give a folder ({one_line(error)})"
        ) from None
    if not files & {_SINGLE, _INDEX}:
        raise StudyError(
            f"model.path={name!r} has no safetensors weights on the hub: {_CONVERT_FIRST}"
        )
    return folder


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The safetensors files that make up the weights, in order, each with a sound header and its full length.

    Nothing of the weights themselves is read: this takes milliseconds. An empty list means a hub model whose weights
    are still to be fetched. Raises :class:`StudyError` where they're missing, damaged, or a pickle.
    """
    folder, named = checkpoint.folder, checkpoint.named
    if not (folder / "config.json").is_file():
        raise StudyError(f"{named} has no config.json: give the folder that save_pretrained wrote")
    if (folder / _SINGLE).is_file():
        files = [folder / _SINGLE]
    elif (folder / _INDEX).is_file():
        try:
            shards = sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StudyError(
                f"{named}: {_INDEX} is damaged: fetch or save the model again"
            ) from None
        files = [folder / shard for shard in shards]
    elif checkpoint.commit:
        return []
    elif any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise StudyError(
            f"{named} holds its weights as a pickle, which is never opened here: {_CONVERT_FIRST}"
        )
    else:
        raise StudyError(
            f"{named} has no {_SINGLE} and no {_INDEX}: give a folder with the weights as safetensors"
        )
    if checkpoint.commit and not all(file.exists() for file in files):
        return []
    for file in files:
        if damage := safetensors_damage(file):
            raise StudyError(
                f"{named}: weight file {file.name} {damage}: fetch or save the model again"
            )
    return files


def safetensors_damage(file: Path) -> str | None:
    """What is wrong with a safetensors file, as far as its header and its length can tell; ``None`` if nothing is."""
    try:
        with safe_open(file, framework="pt") as opened:
            return None if opened.keys() else "holds no tensor"
    except FileNotFoundError:
        return "is missing"
    except (SafetensorError, OSError) as error:
        return f"is damaged ({one_line(error)})"


def fingerprint(checkpoint: Checkpoint) -> str:
    """The hub's commit, or sha256 over config.json and the weights' bytes (read once: their hashes are remembered)."""
    if checkpoint.commit:
        return checkpoint.commit
    files = [checkpoint.folder / "config.json", *weight_files(checkpoint)]
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


def read_config(checkpoint: Checkpoint, quant_bits: int | None = None) -> Any:
    """The model's configuration (a transformers ``PretrainedConfig``).

    Raises :class:`StudyError` for one that transformers can't read, that brings its own code, or that is quantised in
    another way than bitsandbytes does with ``quant_bits``.
    """
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                checkpoint.folder, trust_remote_code=False, local_files_only=True
            )
    except (
        Exception
    ) as error:  # ValueError, KeyError, OSError and more: whatever a strange config.json sets off
        raise StudyError(
            f"{checkpoint.named}: config.json can't be used: {one_line(error)}"
        ) from None
    held = getattr(config, "quantization_config", None)
    if held is not None:
        _check_held(
            checkpoint.named, held if isinstance(held, dict) else held.to_dict(), quant_bits
        )
    return config


def _check_held(named: str, held: dict[str, Any], quant_bits: int | None) -> None:
    """A checkpoint that comes quantised is used as it is, where bitsandbytes made it and its bits were asked for."""
    bits = quantised.bits_of(held)
    if bits is None:
        raise StudyError(
            f"{named} is quantised ({held.get('quant_method')}): give its unquantised checkpoint (float32, bf16 or"
            " float16); model.quant_bits=4 holds that in 4 bits"
        )
    if bits != quant_bits:
        asked = "null" if quant_bits is None else quant_bits
        raise StudyError(
            f"{named} holds its weights in {bits} bits, not model.quant_bits={asked}: give model.quant_bits={bits}"
            " or its unquantised checkpoint"
        )


@dataclass(frozen=True)
class Anatomy:
    """A model's parts, known without its weights: the module paths of its block linears, their ``(D, O)``, how many
    parameters it has, and how many of them make up its head (``d V``, also where it is tied to the embeddings)."""

    linears: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    parameters: int
    head: int


def anatomy(config: Any, named: str, quant_bits: int | None = None) -> Anatomy:
    """What a model is made of, from its config alone: it is built without memory for weights.

    Raises :class:`StudyError` for what is no causal language model, or none whose linears ``quant_bits`` can hold.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # as in read_config
        raise StudyError(
            f"{named} is no causal language model of transformers: {one_line(error)}"
        ) from None
    found = block_linears(model)
    if not found:
        raise StudyError(
            f"{named}: {type(model).__name__} has no linear layer in its blocks to adapt"
        )
    if quant_bits == 4:
        quantised.check_rows(named, {path: model.get_submodule(path) for path in found})
    head = model.get_output_embeddings()
    return Anatomy(
        linears=found,
        shapes=tuple(_shape(model.get_submodule(path)) for path in found),
        parameters=sum(p.numel() for p in model.parameters()),
        head=head.weight.numel() if head else 0,
    )


def _shape(linear: nn.Module) -> tuple[int, int]:
    """``(D, O)``; Conv1D keeps its weight as ``[D, O]``."""
    first, second = linear.get_parameter("weight").shape
    return (first, second) if isinstance(linear, Conv1D) else (second, first)


def block_linears(model: nn.Module) -> tuple[str, ...]:
    """The module paths of every ``nn.Linear`` or ``Conv1D`` in the blocks of the language model, in order.

    Blocks are what sits in a numbered list; heads, embeddings and a vision tower's layers are no part of them.
    """
    text = set(model.get_decoder().modules())  # type: ignore[operator]
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module in text
        and any(part.isdigit() for part in name.split("."))
    )


def load_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, quant_bits: int | None
) -> Any:
    """The model on ``device`` with weights in ``dtype``; a hub model's weights are fetched here.

    With ``quant_bits`` each weight of a block linear is quantised as it is read: the whole is never held dense.

    Raises :class:`StudyError` where the weights don't fit the model: nothing is filled up at random.
    """
    if checkpoint.path and checkpoint.commit and not weight_files(checkpoint):
        _fetch_weights(checkpoint.path, checkpoint.commit)
        weight_files(checkpoint)  # as they came
    config = read_config(checkpoint, quant_bits)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            # attn_implementation is left out: transformers takes sdpa, and eager for the few families that sdpa gets
            # wrong (Gemma 2 caps its attention scores), where asking for sdpa is an error.
            model, report = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                config=config,
                dtype=dtype,
                device_map=device,  # straight there: a GPU's model needs no room in the host's memory
                quantization_config=None
                if quant_bits is None
                else quantised.recipe(quant_bits, dtype),
                use_safetensors=True,
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise StudyError(
            f"{checkpoint.named} doesn't fit on {device} in {dtype}: try precision=bf16, model.quant_bits=4 or another"
            " device"
        ) from None
    except Exception as error:  # as in read_config
        raise StudyError(f"{checkpoint.named} can't be loaded: {one_line(error)}") from None
    if absent := sorted(report["missing_keys"]):
        raise StudyError(
            f"{checkpoint.named} lacks {len(absent)} weights of {type(model).__name__} ({absent[0]}, ...):"
            " give a complete checkpoint of a causal language model"
        )
    return model


def _fetch_weights(name: str, commit: str) -> None:
    """Fill up the hub's snapshot folder with the weights; files that are there already are not fetched again."""
    wanted = ["model*.safetensors", _INDEX]
    try:
        snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=["*/*"])
    except Exception as error:  # as in _hub_folder
        raise StudyError(
            f"model.path={name!r}: its weights can't be fetched from the hub: check the network and the disk, then run"
            f" the same line again ({one_line(error)})"
        ) from None


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """The folder's tokenizer.

    Raises :class:`StudyError` where there is none, or none that the tokenizers library can run.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # as in read_config
        raise StudyError(
            f"{checkpoint.named} has no usable tokenizer: save one beside the weights ({one_line(error)})"
        ) from None
    # For some families transformers makes up a tokenizer of special tokens alone where the files are missing.
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or len(tokenizer) < 16:
        raise StudyError(
            f"{checkpoint.named} has no usable tokenizer: save its tokenizer.json beside the weights"
        )
    return tokenizer


def one_line(error: Exception) -> str:
    """What another library's exception says, on one line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
