"""The tiny model is the same everywhere, and making it leaves the random state unchanged."""

import pytest
import torch

from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, load_base, load_tokenizer, tiny

TINY = ModelConfig("tiny")
CPU = torch.device("cpu")


def test_two_loads_are_equal_and_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = load_base(TINY, CPU, "float32"), load_base(TINY, CPU, "float32")
    describe(TINY)
    assert torch.equal(before, torch.get_rng_state())
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, second.model.get_parameter(name)), name


def test_the_weights_are_pinned() -> None:
    """If these numbers change, then the model's fingerprint must change too."""
    weight = tiny.build().model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(
        weight[0, :3], torch.tensor([-0.0909774, 0.0041661, -0.0146288]), rtol=0, atol=1e-6
    )
    assert tiny.TinyModel("tiny").fingerprint().startswith("039c9e075aa5")


def test_a_width_sets_the_sizes_of_the_layers() -> None:
    sizes = {(d, o) for d, o in describe(ModelConfig("tiny", width=128)).shapes_by_path.values()}
    assert sizes == {(128, 128), (128, 64), (128, 256), (256, 128)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("tiny", width=70), "model.width=70 is not a multiple of 8: give one, .* 72"),
        (ModelConfig("smollm2", width=64), "use model=tiny, or model.width=null"),
    ],
)
def test_a_width_that_a_model_cannot_have(config: ModelConfig, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        describe(config)


def test_the_tokenizer_is_one_token_per_byte_and_gives_the_text_back() -> None:
    tokenizer = load_tokenizer(TINY)
    text = "Net income: $1,234  (in thousands)\n\té漢😀"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (258, 256, 257)
