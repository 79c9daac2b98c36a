"""A causal language model of transformers in a folder, from the user or from the Hugging Face hub.

Weights come from safetensors files only, and code in a checkpoint is never run. From the hub come
config and tokenizer when a model is described, and its weights when it is loaded.
"""

import contextlib
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from study.errors import StudyError, no_panic, one_line, short
from study.models import quantised
from study.models.messages import quiet
from study.store.cache import file_sha256

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights in one file, or the index of its shards."""

_CONVERT = (
    "convert it to safetensors first (model.save_pretrained in transformers, or the hub's convert"
    " Space)"
)
_AGAIN = "fetch or save the model again"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "merges.txt"]
"""Config and tokenizer, at the top of a repository."""
_ASKS_FOR_MORE = re.compile(
    r'"(transformers_weights|fusion_config)"\s*:\s*(?!null)|"(\w+_implementation)"\s*:\s*"[^"]*/'
)
"""Keys of config.json with which transformers loads other weights, or code from the hub."""
_SMALLEST_TOKENIZER = 16
"""If tokenizer files are missing, transformers may make a tokenizer of special tokens only."""
_SAMPLE = "Sample 1: é, 漢\n"
"""A text that any tokenizer must be able to encode."""


@dataclass(frozen=True)
class Checkpoint:
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

    def state(self) -> frozenset[tuple[str, int, int]]:
        """Name, size and time of every file: it changes when a file changes."""
        files = [(file.name, file.stat()) for file in self.folder.iterdir() if file.is_file()]
        return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)

    def fingerprint(self) -> str:
        """The hub's commit, or the sha256 of config.json and the weights (cached on disk)."""
        return self.commit or self.sha256 or self._hash(again=False)

    def _hash(self, again: bool) -> str:
        files = [self.folder / CONFIG, *self.weight_files()]
        hashes = [file_sha256(file, again) for file in files]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def check_unchanged(self, fingerprint: str) -> None:
        """Raises :class:`StudyError` if the files are not those that ``fingerprint`` stands for.

        Hashes every weight file: a cached hash misses bits that changed at the same size and
        modification time. Costs one pass over the files, about 0.7 s per GB.
        """
        if not (self.commit or self.sha256):
            if self._hash(again=True) != fingerprint:
                raise StudyError(
                    f"{self.named}: its files have changed since they were last hashed: "
                    "run the same command again, which trains cells of the new weights"
                )
            return
        for file in self.weight_files():
            # A file of the hub's cache is a link to one that has its sha256 as its name.
            expected = file.resolve().name if self.commit else hash_beside(file)
            if re.fullmatch("[0-9a-f]{64}", expected) and file_sha256(file, again=True) != expected:
                raise StudyError(
                    f"{self.named}: {file.resolve()} is damaged (it has another sha256 than when "
                    "it was fetched): delete it, and it will be fetched again"
                )

    def weight_files(self) -> list[Path]:
        """The safetensors files of the weights, in order; empty if the hub's are not yet fetched.

        Takes milliseconds: only headers and lengths are checked. Raises :class:`StudyError` if a
        file is missing or damaged, or if the weights are pickled.
        """
        if (self.folder / SINGLE).is_file():
            files = [self.folder / SINGLE]
        elif (self.folder / INDEX).is_file():
            files = _shards(self.folder, self.named)
        elif self.commit:
            return []
        elif any(next(self.folder.glob(pattern), None) for pattern in _PICKLES):
            raise StudyError(
                f"{self.named} has pickled weights, which are never opened: {_CONVERT}"
            )
        else:
            raise StudyError(
                f"{self.named} has no {SINGLE} and no {INDEX}: give a folder with safetensors "
                "weights"
            )
        if self.commit and not all(file.exists() for file in files):
            return []
        for file in files:
            check_weights(file, f"{self.named}: weight file {file.name}")
        return files

    def config(self, quant_bits: int | None = None) -> Any:
        """The model's configuration, a transformers ``PretrainedConfig``.

        Raises :class:`StudyError` as :meth:`weight_files` does, and for a configuration that
        transformers can't read, that needs code from the checkpoint, or that is quantised otherwise
        than bitsandbytes does with ``quant_bits``.
        """
        self.weight_files()
        try:
            with quiet(), no_panic():
                config = AutoConfig.from_pretrained(
                    self.folder, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:  # ValueError, KeyError, OSError and others
            raise StudyError(
                f"{self.named}: {CONFIG} can't be used ({one_line(error)}): "
                "give a causal language model that transformers supports"
            ) from None
        quantisation = getattr(config, "quantization_config", None)
        if quantisation is not None:
            if not isinstance(quantisation, dict):
                quantisation = quantisation.to_dict()
            quantised.check_checkpoint(self.named, quantisation, quant_bits)
        return config

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The folder's tokenizer.

        Raises :class:`StudyError` if there is none that the tokenizers library can run.
        """
        try:
            with quiet(), no_panic():
                tokenizer = AutoTokenizer.from_pretrained(
                    self.folder, trust_remote_code=False, local_files_only=True
                )
                tokenizer.decode(tokenizer(_SAMPLE).input_ids)
        except Exception as error:  # as in config
            raise StudyError(
                f"{self.named} has no usable tokenizer ({one_line(error)}): "
                "save its tokenizer in the same folder"
            ) from None
        is_fast = isinstance(tokenizer, PreTrainedTokenizerFast)
        if not is_fast or len(tokenizer) < _SMALLEST_TOKENIZER:
            raise StudyError(
                f"{self.named} has no usable tokenizer: save its tokenizer.json in the same folder"
            )
        if dropout := getattr(tokenizer.backend_tokenizer.model, "dropout", None):
            raise StudyError(
                f"{self.named}: tokenizer.json has dropout={dropout:g}, so each run would have "
                "other tokens: set it to null"
            )
        return tokenizer

    def load(self, device: torch.device, dtype: torch.dtype, quant_bits: int | None) -> Any:
        """The model on ``device`` with weights in ``dtype``. A hub model's weights are fetched.

        With ``quant_bits``, each weight of a block linear is quantised as it is read, so the dense
        model is never in memory. Raises :class:`StudyError` if the weights don't fit the model.
        """
        if self.commit and not self.weight_files():
            _fetch_weights(self.name, self.commit)
        config = self.config(quant_bits)
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                model, report = _from_pretrained(self.folder, config, device, dtype, quant_bits)
        except torch.OutOfMemoryError:
            raise StudyError(
                f"{self.named} does not fit on {device} in {dtype}: "
                "try precision=bf16, model.quant_bits=4 or another device"
            ) from None
        except Exception as error:  # as in config
            raise StudyError(
                f"{self.named} can't be loaded ({one_line(error)}): {_AGAIN}"
            ) from None
        if mismatched := sorted(report["mismatched_keys"]):
            name, found, needed = mismatched[0]
            raise StudyError(
                f"{self.named}: {short(name)} has shape {list(found)}, but its {CONFIG} needs "
                f"{list(needed)}: {_AGAIN}"
            )
        if missing := sorted(report["missing_keys"]):
            raise StudyError(
                f"{self.named} lacks {len(missing)} weights of {type(model).__name__}"
                f" ({missing[0]}, ...): give a complete checkpoint of a causal language model"
            )
        return model


def _from_pretrained(
    folder: Path, config: Any, device: torch.device, dtype: torch.dtype, quant_bits: int | None
) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report on its weights."""
    # Without attn_implementation transformers takes sdpa, and eager for the few families that sdpa
    # computes wrongly (Gemma 2 caps its attention scores). Asking for sdpa fails for those.
    return AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        device_map=device,  # directly: weights for a GPU are not held in the host's memory
        quantization_config=None if quant_bits is None else quantised.bnb_config(quant_bits, dtype),
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are in the report, by name
        weights_only=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )


def hash_beside(file: Path) -> str:
    """The sha256 of a weight file when it was made, from the file beside it; that is made now if
    it is missing.
    """
    place = file.with_name(f"{file.name}.sha256")
    if not place.is_file():
        with contextlib.suppress(OSError):  # a shared cache may be read-only
            place.write_text(file_sha256(file))
    return place.read_text() if place.is_file() else ""


def check_weights(file: Path, named: str) -> None:
    """Raises :class:`StudyError` for a safetensors file that is damaged or missing, judging by
    header and length.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            empty = not opened.keys()
    except FileNotFoundError:
        raise StudyError(f"{named} does not exist: {_AGAIN}") from None
    except (SafetensorError, OSError, MemoryError) as error:
        raise StudyError(f"{named} is damaged ({one_line(error)}): {_AGAIN}") from None
    if empty:
        raise StudyError(f"{named} holds no tensor: {_AGAIN}")


def _shards(folder: Path, named: str) -> list[Path]:
    """The weight files that the index in ``folder`` names.

    Raises :class:`StudyError` for an index that is damaged or names files elsewhere.
    """
    files = _object(folder / INDEX, f"{named}: {INDEX}").get("weight_map")
    if not isinstance(files, dict) or not files:
        raise StudyError(f"{named}: {INDEX} is damaged (it has no weight_map): {_AGAIN}")
    for file in files.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise StudyError(
                f"{named}: {INDEX} has {short(file)}: it must name .safetensors files in the same "
                "folder"
            )
    return [folder / file for file in sorted(set(files.values()))]


def _object(file: Path, named: str) -> dict[str, Any]:
    """The JSON object in a small file of the model's."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{named} is not valid JSON ({one_line(error)}): {_AGAIN}") from None
    if not isinstance(found, dict):
        raise StudyError(f"{named} is not an object with keys: {_AGAIN}")
    return found


def find(path: str) -> Checkpoint:
    """The checkpoint that ``model.path`` names: a folder, or a model on the hub.

    Raises :class:`StudyError` if there is neither.
    """
    named = f"model.path={short(path, 200)}"
    try:
        folder = Path(path).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # too long a name; ~ of an unknown user
        raise StudyError(
            f"{named} can't be read ({one_line(error)}): give a folder or a hub name"
        ) from None
    if is_folder:
        _check_folder(folder, named)
        return Checkpoint(folder, path, named, path)
    if exists:
        raise StudyError(f"{named} is a file: give the folder with {CONFIG} and *.safetensors")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise StudyError(
            f"{named} does not exist: give a folder with {CONFIG} and *.safetensors, or a hub name"
        )
    folder = snapshot(path)
    _check_folder(folder, named)
    return Checkpoint(folder, path, named, path, commit=folder.name)


def _check_folder(folder: Path, named: str) -> None:
    """Raises :class:`StudyError` for what transformers would load beside the model's own files."""
    try:
        names = {file.name for file in folder.iterdir()}
    except OSError as error:
        raise StudyError(f"{named} can't be read ({error.strerror}): check its rights") from None
    if CONFIG not in names:
        raise StudyError(f"{named} has no {CONFIG}: give the folder that save_pretrained wrote")
    if "adapter_config.json" in names:
        raise StudyError(
            f"{named} has an adapter_config.json: for an adapter, use adapter.path and name its "
            "base as model.path; otherwise delete that file"
        )
    config = _object(folder / CONFIG, f"{named}: {CONFIG}")
    if found := _ASKS_FOR_MORE.search(json.dumps(config)):
        raise StudyError(
            f"{named}: {CONFIG} has {found[1] or found[2]}, with which other weights or code are "
            "loaded: remove the key"
        )


@lru_cache
def snapshot(name: str) -> Path:
    """The folder of the hub model ``name`` with its config and tokenizer, named by the commit.

    Cached, so that a process uses one commit. Raises :class:`StudyError` if the model is unknown,
    gated or without safetensors, or if the hub can't be reached.
    """
    named = f"model.path={name!r}"
    try:
        with quiet():
            folder = Path(
                snapshot_download(name, allow_patterns=_SMALL_FILES, ignore_patterns=["*/*"])
            )
        files = {file.name for file in folder.iterdir()}
        if not files & {SINGLE, INDEX}:
            files = set(HfApi().list_repo_files(name, revision=folder.name))
    except GatedRepoError:
        raise StudyError(
            f"{named} is not a folder, and the hub model is gated: accept its terms on its page and"
            " run `hf auth login`, or give a folder"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise StudyError(
            f"{named} is not a folder, and the hub has no public model of this name: check the"
            " spelling, give a folder, or run `hf auth login` if the model is private"
        ) from None
    except Exception as error:  # the hub's or its HTTP client's, depending on the version
        raise StudyError(
            f"{named} is not a folder, and the hub can't be reached ({one_line(error)}): check the"
            " path or the network, or give a folder"
        ) from None
    if not files & {SINGLE, INDEX}:
        raise StudyError(f"{named} has no safetensors weights on the hub: {_CONVERT}")
    return folder


def _fetch_weights(name: str, commit: str) -> None:
    """Add the weights to the snapshot folder of a commit; files already there are not fetched.

    Raises :class:`StudyError` if a download fails.
    """
    wanted = ["model*.safetensors", INDEX]
    try:
        snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=["*/*"])
    except Exception as error:  # as in snapshot
        raise StudyError(
            f"model.path={name!r}: its weights can't be fetched from the hub ({one_line(error)}):"
            " check the network and the disk, then run the same command again"
        ) from None
