"""The tiny model is the same everywhere, and making it leaves the random state unchanged."""

import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, load_base

TINY = ModelConfig("tiny")


def test_it_is_the_same_everywhere_and_leaves_the_global_random_state_alone() -> None:
    """If these numbers change, then the model's fingerprint must change too."""
    before = torch.get_rng_state()
    model = load_base(TINY, torch.device("cpu"), "float32").model
    assert torch.equal(before, torch.get_rng_state())
    found = model.get_parameter("model.layers.0.self_attn.q_proj.weight")[0, :3]
    wanted = torch.tensor([-0.0909774, 0.0041661, -0.0146288])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert describe(TINY).fingerprint.startswith("039c9e075aa5")


def test_a_width_sets_the_sizes_of_the_layers() -> None:
    sizes = set(describe(ModelConfig("tiny", width=128)).shapes)
    assert sizes == {(128, 128), (128, 64), (128, 256), (256, 128)}
    with pytest.raises(StudyError, match=r"model.width=70 is not a multiple of 8: give one"):
        describe(ModelConfig("tiny", width=70))
    with pytest.raises(StudyError, match=r"use model=tiny, or model.width=null"):
        describe(ModelConfig("smollm2", width=64))
