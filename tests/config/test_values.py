"""What fields accept and refuse, where the rest of the toolkit relies on it."""

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from study.config.types import optimizer_config
from study.config.values import LARGEST_FLOAT, check_folder_name, interval, literal, written
from study.errors import StudyError
from study.training.optimizers import build_optimizer
from study.vocabulary.optimizers import OPTIMIZERS


def test_names_of_folders():
    for name in ("été ☃", "x" * 200, "a b", "a.b"):
        assert check_folder_name(name) == name
    for name in ("", "..", "a/b", "a\\b", "a\n", " a", "x" * 201, "a\u200e"):
        with pytest.raises(StudyError, match=r"^name="):
            check_folder_name(name, "name")


def test_intervals():
    assert interval("checkpoint.every", 1) == 1
    assert interval("checkpoint.every", "1.5m") == 90.0
    for value in (0, True, 1.5, "0s", "60d"):
        with pytest.raises(StudyError, match=r"^checkpoint\.every=.* no interval: give .*null$"):
            interval("checkpoint.every", value)


def test_text_of_a_stranger_stays_text():
    assert literal({"a": ["${oc.env:HOME}", r"\${x}", 3]}) == {
        "a": [r"\${oc.env:HOME}", r"\\\${x}", 3]
    }


@given(st.one_of(st.text("\\\\' \"ab{}", max_size=9), st.text("ab/.-_0", min_size=1)))
def test_hydra_reads_a_written_text_back(text):
    override = OverridesParser.create().parse_override(f"key={written(text)}")
    assert str(override.value()) == text


def extremes(option):
    """The smallest and the largest values that an option may have, or all of them."""
    if option.choices:
        return list(option.choices)
    low = option.least if option.above is None else option.above + 1e-300
    high = option.most if option.below is None else option.below - 1e-16
    ends = [-LARGEST_FLOAT if low is None else low, LARGEST_FLOAT if high is None else high]
    return ends if option.length is None else [[end] * option.length for end in ends]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_within_its_limits_can_be_trained_with(name):
    """Otherwise the optimizer would refuse it after the base was loaded."""
    usual = {
        key: option.choices[0] if option.choices else option.least or 0.5
        for key, option in OPTIMIZERS[name].options.items()
    }
    if "betas" in usual:
        usual["betas"] = [0.9, 0.99]
    if "decay_rate" in usual:
        usual["decay_rate"] = -0.8
    for key, option in OPTIMIZERS[name].options.items():
        for value in extremes(option):
            config = optimizer_config(name)(
                name=name, lr=1e-3, weight_decay=0.0, loraplus_lr_ratio=1.0, **{**usual, key: value}
            )
            A, B = (torch.nn.Parameter(torch.ones(2, 2)) for _ in "AB")
            optimizer = build_optimizer(config, [A], [B])
            for _ in range(2):
                A.grad, B.grad = torch.ones(2, 2), torch.ones(2, 2)
                optimizer.step()
