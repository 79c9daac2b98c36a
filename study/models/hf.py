"""A causal language model of transformers in a folder, from the user or from the hub.

Weights come from safetensors files only, and code in a checkpoint is never run.
"""

import contextlib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from study.errors import StudyError, no_panic, short
from study.models import hub, quantised, received
from study.models.quiet import no_stderr, quiet, quoted
from study.models.received import Tensor
from study.store.cache import file_sha256

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
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
        if known := self.commit or self.sha256:
            return known
        return self._hash(again=False)

    def _hash(self, again: bool) -> str:
        files = [self.folder / "config.json", *self.weight_files()]
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
        if (self.folder / hub.SINGLE).is_file():
            files = [self.folder / hub.SINGLE]
        elif (self.folder / hub.INDEX).is_file():
            files = received.shards(self.folder, self.named)
        elif self.commit:
            return []
        else:
            raise self._no_weights()
        if self.commit and not all(file.exists() for file in files):
            return []
        for file in files:
            received.check_weights(file, f"{self.named}: weight file {file.name}")
        return files

    def tensors(self) -> Mapping[str, Tensor]:
        """Shape and type of every tensor by name; empty if the weights are not yet fetched."""
        return {
            name: tensor
            for file in self.weight_files()
            for name, tensor in received.tensors(file).items()
        }

    def _no_weights(self) -> StudyError:
        if any(next(self.folder.glob(pattern), None) for pattern in _PICKLES):
            return StudyError(
                f"{self.named} has pickled weights, which are never opened: {hub.CONVERT}"
            )
        return StudyError(
            f"{self.named} has no {hub.SINGLE} and no {hub.INDEX}: "
            "give a folder with safetensors weights"
        )

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
                f"{self.named}: config.json can't be used ({quoted(error)}): "
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
            with quiet(), no_stderr(), no_panic():
                tokenizer = AutoTokenizer.from_pretrained(
                    self.folder, trust_remote_code=False, local_files_only=True
                )
                tokenizer.decode(tokenizer(_SAMPLE).input_ids)
        except Exception as error:  # as in config
            raise StudyError(
                f"{self.named} has no usable tokenizer ({quoted(error)}): "
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
            hub.fetch_weights(self.name, self.commit)
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
                f"{self.named} can't be loaded ({quoted(error)}): fetch or save the model again"
            ) from None
        if mismatched := sorted(report["mismatched_keys"]):
            name, found, needed = mismatched[0]
            raise received.wrong_shape(self.named, name, found, needed)
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
            f"{named} can't be read ({quoted(error)}): give a folder or a hub name"
        ) from None
    if is_folder:
        received.check_folder(folder, named)
        return Checkpoint(folder, path, named, path)
    if exists:
        raise StudyError(f"{named} is a file: give the folder with config.json and *.safetensors")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise StudyError(
            f"{named} does not exist: give a folder with config.json and *.safetensors, "
            "or a hub name"
        )
    folder = hub.snapshot(path)
    received.check_folder(folder, named)
    return Checkpoint(folder, path, named, path, commit=folder.name)
