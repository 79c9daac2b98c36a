"""A folder of a stranger: a card or one line, whatever its config.json says."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.config import ModelConfig
from study.errors import StudyError
from study.models import base, describe, load_base, received, tiny

KEYS = sorted({*tiny.config().to_dict(), "auto_map", "num_labels", "text_config", "layer_types"})
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 3, 10**9, 2**63, 10**40, 0.5, -1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "64", "llama", "gpt2", "../x", "sdpa", "full_attention"]),
    st.sampled_from([[], {}, [1], {"a": 1}, [10**9] * 3, ["full_attention"]]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("received") / "m"
    tiny.build().save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_any_config_is_a_model_or_one_line(folder: Path, changes: dict[str, object]) -> None:
    """Described, and loaded if it can be described."""
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        loaded = load_base(ModelConfig("hf", str(folder)), torch.device("cpu"), "float32")
        if not changes.get("tie_word_embeddings"):  # the folder's weights have a head
            assert loaded.card.parameters == sum(p.numel() for p in loaded.model.parameters())
    except StudyError:
        pass
    finally:
        path.write_text(before)


def test_the_memory_is_checked_before_the_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig("hf", str(folder))
    weights = 4 * describe(config).parameters
    monkeypatch.setattr(base, "free_memory", lambda: weights)
    load_base(config, torch.device("cpu"), "float32")
    monkeypatch.setattr(base, "free_memory", lambda: weights - 1)
    with monkeypatch.context() as unread:
        unread.setattr("study.models.hf._from_pretrained", None)
        with pytest.raises(StudyError, match=r"m' needs .* GiB of memory and .* GiB are free: try"):
            load_base(config, torch.device("cpu"), "float32")
    assert load_base(config, torch.device("cpu"), "bf16").model.dtype is torch.bfloat16


def test_a_folder_without_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read every folder, so the system's answer is replaced."""

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StudyError, match=r"can't be read \(Permission denied\)"):
        received.check_folder(folder, "m")


def test_the_largest_models_are_below_the_limits() -> None:
    """Llama-3.1-405B, DeepSeek-V3, Qwen3-235B: layers, heads and experts."""
    largest = {"num_hidden_layers": 126, "num_attention_heads": 128, "n_routed_experts": 256}
    received._check_config(largest | {"vocab_size": 262_208, "rope_theta": 10_000_000}, "m")
    received._check_config({"text_config": largest, "max_window_layers": 94}, "m")
