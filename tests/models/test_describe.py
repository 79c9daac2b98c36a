"""The card of a model, and the mistakes that are found before its weights are loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import checkpoints, describe, load_base, load_tokenizer, tiny

CPU = torch.device("cpu")


def error_of(config):
    """The message of the error, which must be one line and come without loading a model."""
    with pytest.raises(StudyError) as caught:
        describe(config)
    return str(caught.value)


def test_a_saved_folder_is_the_model_that_was_saved(tiny_folder, tmp_path):
    """Also in another place: the fingerprint is of the content."""
    config = ModelConfig("hf", str(tiny_folder))
    card, original = describe(config), describe(ModelConfig("tiny"))
    assert (card.name, card.max_length, card.linears) == (str(tiny_folder), 512, original.linears)
    assert card.tokenizer_fingerprint == original.tokenizer_fingerprint
    copied = shutil.copytree(tiny_folder, tmp_path / "copied")
    assert describe(ModelConfig("hf", str(copied))).fingerprint == card.fingerprint
    assert load_tokenizer(config)("a é").input_ids == tiny.tokenizer()("a é").input_ids
    ids = torch.arange(20)[None]
    saved, made = (load_base(each, CPU, "float32").model for each in (config, ModelConfig("tiny")))
    assert torch.equal(saved(ids).logits, made(ids).logits)


def test_shards_are_one_model_and_all_of_them_must_be_there(tmp_path):
    folder = tmp_path / "sharded"
    tiny.build().save_pretrained(folder, max_shard_size="100KB")
    tiny.tokenizer().save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    config = ModelConfig("hf", str(folder))
    assert describe(config).linears == describe(ModelConfig("tiny")).linears
    shards[-1].unlink()
    assert f"{shards[-1].name} does not exist" in error_of(config)


WEIGHTS = {
    "is damaged": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "has pickled weights": lambda file: file.rename(file.with_name("pytorch_model.bin")),
    "has no model.safetensors": Path.unlink,
}


@pytest.mark.parametrize("says", WEIGHTS)
def test_weights_that_can_not_be_read(tiny_folder, says):
    config = ModelConfig("hf", str(tiny_folder))
    describe(config)  # the cached card must not hide the damage
    WEIGHTS[says](tiny_folder / "model.safetensors")
    assert says in error_of(config)


CODE = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
CONFIGS = {
    "config.json can't be used": {"model_type": "mine", "auto_map": CODE},
    "is quantised (gptq)": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "has attn_implementation": {"attn_implementation": "org/kernel"},
}


@pytest.mark.parametrize("says", CONFIGS)
def test_a_configuration_that_can_not_be_used(tiny_folder, says):
    """Code in a checkpoint is not run."""
    path = tiny_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CONFIGS[says]))
    (tiny_folder / "mine.py").write_text("raise SystemExit('ran')")
    assert says in error_of(ModelConfig("hf", str(tiny_folder)))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_no_tokenizer(tiny_folder, model_type):
    for file in tiny_folder.glob("tokenizer*"):
        file.unlink()
    if model_type != "llama":
        (tiny_folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert "has no usable tokenizer" in error_of(ModelConfig("hf", str(tiny_folder)))


def test_of_a_hub_model_a_plan_takes_the_small_files_and_loading_the_weights(
    tiny_folder, monkeypatch
):
    """No network: ``snapshot_download`` is replaced."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tiny_folder.with_name(commit)
    folder.mkdir()

    def download(name, revision, allow_patterns, **_):
        if name != "me/tiny":
            raise ConnectionError("no\nno")
        assert revision in (None, commit)
        for pattern in allow_patterns:
            for file in tiny_folder.glob(pattern):
                shutil.copy(file, folder)
        return str(folder)

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    checkpoints.snapshot.cache_clear()
    config = ModelConfig("hf", "me/tiny")
    card = describe(config)
    assert (card.name, card.fingerprint, len(card.linears)) == ("me/tiny", commit, 14)
    assert not (folder / "model.safetensors").exists()
    base = load_base(config, CPU, "float32")
    head = base.model.get_parameter("lm_head.weight")
    assert torch.equal(head, tiny.build().get_parameter("lm_head.weight"))
    assert base.card == card
    message = error_of(ModelConfig("hf", "me/other"))
    assert "'me/other' is no folder, and can't be fetched from the hub (ConnectionErr" in message
