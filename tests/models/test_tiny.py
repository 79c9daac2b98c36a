"""The models that come with the package: the tiny one and the small one."""

import math

import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, load_base, load_tokenizer

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


def test_the_small_model_has_learned_documentation_and_reads_bytes() -> None:
    """A sentence of networkx, which it has not read, at less than 2 bits a byte; a shuffled one at
    more than twice as many."""
    base = load_base(ModelConfig("small"), torch.device("cpu"), "float32")
    sentence = "Returns True if the graph is connected, False otherwise. Parameters"
    losses = []
    for text in (sentence, "".join(sorted(sentence, key=lambda c: (ord(c) * 37 % 101, c)))):
        ids = torch.tensor(load_tokenizer(ModelConfig("small"))(text).input_ids)
        assert ids.tolist() == list(text.encode())
        logits = base.model(ids[None]).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[1:]).item())
    assert losses[0] < 2 * math.log(2)
    assert losses[1] > 2 * losses[0]
    with pytest.raises(StudyError, match=r"model=small reads no path, but model.path='x'"):
        describe(ModelConfig("small", "x"))
