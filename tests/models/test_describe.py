"""The card of a model, and the mistakes that are found before its weights are loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import checkpoints, describe, load_base, load_tokenizer, tiny
from study.models.anatomy import block_linears

CPU = torch.device("cpu")


def error_of(config: ModelConfig) -> str:
    """The message of the error, which must be one line and come without loading a model."""
    with pytest.raises(StudyError) as caught:
        describe(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_linears_are_those_of_the_loaded_model() -> None:
    card = describe(ModelConfig("tiny"))
    model = load_base(ModelConfig("tiny"), CPU, "float32").model
    assert card.linears == block_linears(model)
    assert len(card.linears) == 14
    assert card.linears[0] == "model.layers.0.self_attn.q_proj"
    assert all(isinstance(model.get_submodule(path), torch.nn.Linear) for path in card.linears)
    assert "lm_head" not in card.linears


def test_a_saved_folder_is_the_model_that_was_saved(tiny_folder: Path) -> None:
    config = ModelConfig("hf", str(tiny_folder))
    card, original = describe(config), describe(ModelConfig("tiny"))
    assert (card.name, card.max_length, card.linears) == (str(tiny_folder), 512, original.linears)
    assert card.tokenizer_fingerprint == original.tokenizer_fingerprint
    assert load_tokenizer(config)("a é").input_ids == tiny.tokenizer()("a é").input_ids
    ids = torch.arange(20)[None]
    saved, made = (load_base(each, CPU, "float32").model for each in (config, ModelConfig("tiny")))
    assert torch.equal(saved(ids).logits, made(ids).logits)


def test_the_fingerprint_follows_the_weights_not_the_path(
    tiny_folder: Path, tmp_path: Path
) -> None:
    first = describe(ModelConfig("hf", str(tiny_folder))).fingerprint
    copied = shutil.copytree(tiny_folder, tmp_path / "copied")
    assert describe(ModelConfig("hf", str(copied))).fingerprint == first
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert describe(ModelConfig("hf", str(copied))).fingerprint != first


def test_shards_are_one_model_and_all_of_them_must_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    tiny.build().save_pretrained(folder, max_shard_size="100KB")
    tiny.tokenizer().save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    config = ModelConfig("hf", str(folder))
    assert describe(config).linears == describe(ModelConfig("tiny")).linears
    shards[-1].unlink()
    assert f"{shards[-1].name} does not exist" in error_of(config)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "index.json is damaged" in error_of(config)


def test_tiny_takes_no_path(tiny_folder: Path) -> None:
    assert "model=hf" in error_of(ModelConfig("tiny", str(tiny_folder)))


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./models/llama", "~/no-such-model-folder", "a/b/c"]
)
def test_an_absent_folder(path: str) -> None:
    assert f"model.path={path!r} does not exist" in error_of(ModelConfig("hf", path))


def test_a_file_for_a_folder(tiny_folder: Path) -> None:
    assert "is a file" in error_of(ModelConfig("hf", str(tiny_folder / "config.json")))


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "has no config.json" in error_of(ModelConfig("hf", str(tmp_path)))


def test_a_pickle_is_never_opened(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").rename(tiny_folder / "pytorch_model.bin")
    assert "convert it to safetensors first" in error_of(ModelConfig("hf", str(tiny_folder)))


def test_no_weights_at_all(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    assert "no model.safetensors" in error_of(ModelConfig("hf", str(tiny_folder)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[:1000],
        lambda content: b"",
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        lambda content: content[:8] + b"?" + content[9:],
    ],
    ids=["truncated", "header cut", "empty", "git-lfs pointer", "header garbled"],
)
def test_a_damaged_weight_file(tiny_folder: Path, damage: Any) -> None:
    config = ModelConfig("hf", str(tiny_folder))
    describe(config)  # the cached card must not hide the damage
    weights = tiny_folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    assert "weight file model.safetensors is damaged" in error_of(config)


def test_a_config_that_transformers_does_not_know(tiny_folder: Path) -> None:
    config = tiny_folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "lama"'))
    assert "config.json can't be used" in error_of(ModelConfig("hf", str(tiny_folder)))
    config.write_text("{")
    assert "config.json is not valid JSON" in error_of(ModelConfig("hf", str(tiny_folder)))


def test_code_in_a_checkpoint_is_not_run(tiny_folder: Path) -> None:
    path = tiny_folder / "config.json"
    content = json.loads(path.read_text())
    content |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    }
    path.write_text(json.dumps(content))
    (tiny_folder / "mine.py").write_text("raise SystemExit('ran')")
    assert "config.json can't be used" in error_of(ModelConfig("hf", str(tiny_folder)))


def test_a_quantised_checkpoint(tiny_folder: Path) -> None:
    path = tiny_folder / "config.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
        )
    )
    assert "is quantised (gptq)" in error_of(ModelConfig("hf", str(tiny_folder)))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "gpt_neox"])
def test_no_tokenizer(tiny_folder: Path, model_type: str) -> None:
    for file in tiny_folder.glob("tokenizer*"):
        file.unlink()
    if model_type != "llama":
        (tiny_folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert "has no usable tokenizer" in error_of(ModelConfig("hf", str(tiny_folder)))


class TestHub:
    """No network: ``snapshot_download`` and the hub's API are replaced."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture(autouse=True)
    def _forget(self) -> None:
        checkpoints.snapshot.cache_clear()

    @pytest.fixture
    def snapshot(self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A snapshot folder: it has the config and tokenizer first, and the weights later."""
        folder = tiny_folder.with_name(self.COMMIT)
        folder.mkdir()

        def download(
            name: str,
            allow_patterns: list[str],
            ignore_patterns: list[str],
            revision: str | None = None,
        ) -> str:
            assert (name, revision) in {("me/tiny", None), ("me/tiny", self.COMMIT)}
            for pattern in allow_patterns:
                for file in tiny_folder.glob(pattern):
                    shutil.copy(file, folder)
            return str(folder)

        monkeypatch.setattr(checkpoints, "snapshot_download", download)
        monkeypatch.setattr(
            checkpoints.HfApi,
            "list_repo_files",
            lambda *_, **__: [file.name for file in tiny_folder.iterdir()],
        )
        return folder

    def test_planning_takes_the_small_files_and_loading_the_weights(self, snapshot: Path) -> None:
        config = ModelConfig("hf", "me/tiny")
        card = describe(config)
        assert (card.name, card.fingerprint, len(card.linears)) == ("me/tiny", self.COMMIT, 14)
        assert not (snapshot / "model.safetensors").exists()
        base = load_base(config, CPU, "float32")
        head = base.model.get_parameter("lm_head.weight")
        assert torch.equal(head, tiny.build().get_parameter("lm_head.weight"))
        assert base.card == card

    def test_a_pickle_on_the_hub(self, snapshot: Path, tiny_folder: Path) -> None:
        (tiny_folder / "model.safetensors").rename(tiny_folder / "pytorch_model.bin")
        assert "has no safetensors weights on the hub" in error_of(ModelConfig("hf", "me/tiny"))

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (huggingface_hub.errors.GatedRepoError, "accept its terms"),
            (huggingface_hub.errors.RepositoryNotFoundError, "has no public model of this name"),
            (huggingface_hub.errors.LocalEntryNotFoundError, "can't be reached"),
            (ConnectionError, "can't be reached"),
        ],
    )
    def test_what_the_hub_refuses(
        self, monkeypatch: pytest.MonkeyPatch, error: type[Exception], said: str
    ) -> None:
        def refuse(*_: Any, **__: Any) -> str:
            # Without __init__, which needs a response of the HTTP client for errors of the hub.
            raise error.__new__(error, "no\nno")

        monkeypatch.setattr(checkpoints, "snapshot_download", refuse)
        message = error_of(ModelConfig("hf", "me/tiny"))
        assert "'me/tiny' is not a folder, and the hub" in message
        assert said in message
