"""A new cache folder for each test, except those of real models, which read the user's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from study.models import packaged, tiny


@pytest.fixture(autouse=True)
def _cache(request, monkeypatch, tmp_path):
    real = [name for name in packaged.PACKAGES if request.node.get_closest_marker(name)]
    for name in real:
        if not packaged.is_whole(packaged.PACKAGES[name].folder):
            pytest.skip(f"{name} is not in the user cache: run `study fetch {name}`")
    if not real:
        monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    """The tiny model and its tokenizer, saved in a folder."""
    folder = tmp_path / "saved"
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def save_family(tmp_path) -> Callable[[PretrainedConfig], Path]:
    """Saves a random model of any family with the tiny tokenizer, and returns its folder."""

    def save(config):
        folder = tmp_path / config.model_type
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        return folder

    return save
