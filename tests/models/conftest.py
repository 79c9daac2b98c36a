"""A cache folder of its own for every test but those of the real SmolLM2, which run where it has been fetched."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from study.config import ModelConfig
from study.models import FrozenBase, load_base, smollm2, tiny
from study.store.cache import cache_folder


@pytest.fixture(autouse=True)
def _cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.node.get_closest_marker("smollm2"):
        _skip_without_smollm2()
    else:
        monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def smollm2_base() -> FrozenBase:
    """The real SmolLM2 in float32: one load for all tests of a file, a second or so and 0.6 GB."""
    _skip_without_smollm2()  # a fixture of this scope comes before the one above, and must not start a download
    return load_base(ModelConfig("smollm2"), torch.device("cpu"), "float32")


def _skip_without_smollm2() -> None:
    if smollm2._damage(cache_folder() / smollm2._NAME):
        pytest.skip("SmolLM2 is not in the user cache: run `study fetch smollm2`")


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """The tiny model and its tokenizer, saved as a user's own model would be."""
    folder = tmp_path / "saved"
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def save_family(tmp_path: Path) -> Callable[[PretrainedConfig], Path]:
    """Save a random model of any family, with the tiny tokenizer, and give its folder."""

    def save(config: PretrainedConfig) -> Path:
        folder = tmp_path / config.model_type
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        return folder

    return save
